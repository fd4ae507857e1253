"""The quick tests on every Python that is at hand: `nox`, or `nox -s quick-3.12`.

Interpreters that are not installed are left out (`nox --error-on-missing-interpreters` insists).
"""

import nox

nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["quick"]
nox.needs_version = ">=2024.3"


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def quick(session: nox.Session) -> None:
    """Run the part of the suite that takes seconds, or what is named behind ``--``."""
    session.install("--editable", ".[test]")
    session.run("pytest", "-m", "not slow", *session.posargs)


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def whole(session: nox.Session) -> None:
    """Run everything."""
    session.install("--editable", ".[test]")
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *session.posargs)
