"""`python -m checks.reference_pages`: write every generated part of docs/."""

from checks.reference_pages.pages import DOCS, make_files


def main() -> None:
    """Write the files, and print those that changed."""
    for name, text in make_files().items():
        file = DOCS / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            print(f"docs/{name} changed")


if __name__ == "__main__":
    main()
