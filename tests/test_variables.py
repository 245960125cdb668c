"""Variables of the environment are blamed for an error of a library only where they can be."""

from __future__ import annotations

from pathlib import Path

from tests.programs import started

ROOT = Path(__file__).parents[1]


def test_a_variable_that_a_library_set_itself_is_not_blamed(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise RuntimeError('ours')")
    program = (
        "from harl_fast.program import run_main\nimport os\nos.environ['MPLBACKEND'] = 'x'\n"
        "run_main(lambda: __import__('matplotlib'))"
    )
    job = started("-c", program, PYTHONPATH=f"{tmp_path}:{ROOT}")
    _, errors = job.communicate()
    assert "Traceback" in errors and "MPLBACKEND" not in errors


def test_an_error_of_code_that_a_library_made_is_not_blamed_on_an_import() -> None:
    """As torch.compile runs it: a module that nothing imports."""
    program = (
        "from harl_fast.program import run_main\n"
        "run_main(lambda: exec('raise RuntimeError(1)', {'__name__': 'torch.made'}))"
    )
    job = started("-c", program, PYTHONPATH=str(ROOT), TORCH_HOME="/x")
    _, errors = job.communicate()
    assert "Traceback" in errors and "as it was imported" not in errors
