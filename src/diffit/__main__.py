"""`python -m diffit` is the command `diffit`."""

from diffit.cli import main

raise SystemExit(main())
