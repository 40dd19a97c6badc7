"""README.md holds tables that scripts make, each between two comments."""

from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def put_into_readme(text: str, section: str, readme: Path = README) -> None:
    """Replace what stands between ``<!-- section -->`` and ``<!-- end section -->``."""
    start, end = f"<!-- {section} -->", f"<!-- end {section} -->"
    before, _, rest = readme.read_text().partition(start)
    _, _, after = rest.partition(end)
    if not after:
        raise SystemExit(f"README.md has no section {start} ... {end}")
    readme.write_text(f"{before}{start}\n{text}\n{end}{after}")
