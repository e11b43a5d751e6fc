"""`python -m docs.reference` (or `make docs`) writes the generated blocks of the reference pages from the code.

A page is Markdown written by hand. This command fills its blocks, which begin with `<!-- generated: NAME -->` and end
with `<!-- end -->`. `tests/test_reference.py` fails while a block is not what this command would write.
"""

from docs.reference.blocks import PAGES, filled


def main() -> None:
    """Rewrite each page whose blocks have changed, and name it."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"written: {page.name}")


if __name__ == "__main__":
    main()
