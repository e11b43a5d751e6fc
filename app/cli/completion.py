"""Completion in Bash, without the second shell that click starts to get the version."""

from click.shell_completion import BashComplete, ShellComplete, add_completion_class


class QuickBashComplete(BashComplete):
    """Prints the script for Bash 4.4 and later. An older Bash rejects the options of the script itself."""

    def source(self) -> str:
        """The script. click's own method starts a shell here, which takes longer than the rest."""
        return ShellComplete.source(self)


def install() -> None:
    """Register it with click."""
    add_completion_class(QuickBashComplete, "bash")
