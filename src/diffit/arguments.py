    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            parsed: A = tyro.cli(
                _fixed(kind), args=list(args), prog=prog, default=_or_missing(default)
            )
    except ValidationError as error:
        raise UsageError(explain(error, kind, source=prog)) from None
