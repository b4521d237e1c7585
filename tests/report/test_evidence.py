"""What is committed about the paper's claims is what its runs say, in the tables and the README."""

import csv
import re

import pytest
from conftest import ROOT

import lab.report.__main__ as report

EVIDENCE = ROOT / "results" / "evidence"


@pytest.fixture(scope="module")
def anew(tmp_path_factory):
    """The report of the committed runs, made again."""
    out = tmp_path_factory.mktemp("evidence")
    assert report.main(report.Args((str(EVIDENCE),), out=str(out), figures=False)) == 0
    return out


def test_the_evidence_is_what_its_runs_say(anew):
    tables = sorted(path.name for path in anew.glob("*.csv"))
    assert tables == sorted(path.name for path in EVIDENCE.glob("*.csv"))
    for name in tables:
        assert (anew / name).read_text() == (EVIDENCE / name).read_text(), f"{name}: make evidence"
    assert (anew / "index.html").exists()


def test_every_claim_is_decided_or_says_what_that_would_take():
    with (EVIDENCE / "claims.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 50
    for row in rows:
        decided = row["verdict"] in ("supported", "contradicted")
        assert decided or re.search(r"\btakes? ", row["why"]), row
        assert not decided or row["here"]


def test_the_readme_tells_the_numbers_of_the_tables(anew):
    """Every row of its table of scores, in the words of the page."""
    page = (anew / "index.html").read_text()
    cells = re.findall(r"<tr[^>]*>(.*?)</tr>", page, flags=re.DOTALL)
    rows = [dict(re.findall(r'<td[^>]* data-column="(.*?)">(.*?)</td>', row)) for row in cells]
    told = {(row["game"], row["variant"]): row for row in rows if row.keys() >= {"game", "score"}}
    text = (ROOT / "README.md").read_text()
    table = text.split("<!-- evidence -->")[1]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    head, *body = lines
    assert len(body) == len(told) > 0
    for row in body:
        found = dict(zip(head, row, strict=True))
        of_page = told[found["game"], found["variant"]]
        assert found == {name: of_page[name] for name in head}
