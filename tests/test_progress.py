"""What long work says in a log; `tests/test_status.py` asks what it tells whoever watches."""

from armlet.progress import Progress


def test_a_log_says_at_once_what_has_begun(capsys) -> None:
    Progress("distil", total=4000, start=1000)
    assert capsys.readouterr().err == "distil: 1000/4000 steps\n"


def test_nothing_left_to_do_says_nothing(capsys) -> None:
    Progress("distil", total=3, start=3).close()
    assert capsys.readouterr().err == ""


def test_a_log_has_a_line_now_and_then_and_the_last(capsys) -> None:
    progress = Progress("evaluate", total=3, unit="episode", every=3600.0)
    progress.advance()
    progress.advance()
    progress.advance(kept=0.5)
    progress.close()
    begun, *others = capsys.readouterr().err.splitlines()
    assert begun == "evaluate: 0/3 episodes"
    (last,) = others  # within the hour only the last is said
    assert last.startswith("evaluate: 3/3 episodes, ")
    assert last.endswith("0 s left  kept 0.5")
    often = Progress("evaluate", total=3, unit="episode", every=-1.0)
    often.advance()
    assert capsys.readouterr().err.count("1/3 episodes") == 1
