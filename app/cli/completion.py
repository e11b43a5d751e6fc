"""Completion in Bash, without the second shell that click starts to ask for its version."""

from click.shell_completion import BashComplete, ShellComplete, add_completion_class


class QuickBashComplete(BashComplete):
    """The script is printed for Bash 4.4 and later. An older one says itself that it does not know the options."""

    def source(self) -> str:
        """The script. click's own starts a shell here, which takes longer than all the rest."""
        return ShellComplete.source(self)


def install() -> None:
    """Let click use it."""
    add_completion_class(QuickBashComplete, "bash")
