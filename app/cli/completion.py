"""`pqs completion`, and completion in Bash without the second shell that click starts to get the version."""

import click
from click.shell_completion import BashComplete, ShellComplete, add_completion_class, get_completion_class

VARIABLE = "_PQS_COMPLETE"  # click's: a shell that sets it asks for completions


class QuickBashComplete(BashComplete):
    """Prints the script for Bash 4.4 and later. An older Bash rejects the options of the script itself."""

    def source(self) -> str:
        """The script. click's own method starts a shell here, which takes longer than the rest."""
        return ShellComplete.source(self)


def install() -> None:
    """Register it with click."""
    add_completion_class(QuickBashComplete, "bash")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion of this command for a shell.

    In Bash: eval "$(pqs completion bash)"; in zsh the same; in fish: pqs completion fish | source.
    """
    install()
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has these three
    click.echo(kind(context.find_root().command, {}, "pqs", VARIABLE).source())
