"""The license and the citation are the same wherever they are stated."""

import configparser
import hashlib
import re

import yaml

from tests.helpers.paths import ROOT

APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # SHA-256 of the original


def metadata() -> configparser.SectionProxy:
    """What an installed copy states."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup["metadata"]


def test_the_license_is_the_unchanged_apache_license() -> None:
    """It is also the one that the package and the README name, and it is in the wheel."""
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2
    assert metadata()["license"] == "Apache-2.0"
    assert metadata()["license_files"] == "LICENSE"
    assert "[LICENSE](LICENSE)" in (ROOT / "README.md").read_text()


def test_a_citation_names_the_version_and_the_license_of_the_package() -> None:
    """The keys are those that version 1.2.0 of the Citation File Format requires."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == metadata()["name"]
    assert citation["version"] == metadata()["version"]
    assert citation["license"] == metadata()["license"]
    assert citation["message"] and citation["authors"]
    assert not re.search(r"doi|url|http", str(citation).lower()), "there is no published address or DOI"
