"""What is read from programs for accelerators, and what they are compared with; no compiler is asked here."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import accelerators, accelerators_page
from benchmarks.cases import Case, make
from benchmarks.peers import jax_function

CROP = Case(((2, 20, 24, 3),), 6, (5, 4))
ROI = CROP._replace(strides=(16,))
ONE = ROI._replace(maps=((1, 20, 24, 3),))
PYRAMID = Case(((2, 40, 48, 3), (2, 20, 24, 3), (2, 10, 12, 3)), 6, (5, 4), strides=(4, 8, 16))

# A loop of 5 steps of 100 cycles in one of 10, a scatter in a fusion in a fusion, a branch of 7 cycles and one of 3.
PROGRAM = """HloModule module, is_scheduled=true

%innermost (p: f32[8]) -> f32[8] {
  %p = f32[8]{0:T(128)} parameter(0)
  ROOT %s = f32[8]{0:T(128)} scatter(%p, %p, %p), to_apply=%sum
}

%fused (p: f32[8]) -> f32[8] {
  ROOT %f = f32[8]{0:T(128)} fusion(%p), kind=kCustom, calls=%innermost
}

%limit () -> s32[] {
  ROOT %n = s32[]{:T(128)} constant(10)
}

%many (p: (s32[], f32[8])) -> pred[] {
  %n = s32[] fusion(), kind=kLoop, calls=%limit
  ROOT %c = pred[]{:T(512)} compare(%p, %n), direction=LT
}

%few (p: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  ROOT %c = pred[]{:T(512)} compare(%p, %n), direction=LT
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = f32[8]{0:T(128)} fusion(%p), kind=kCustom, calls=%fused
  ROOT %a = (s32[], /*index=1*/f32[8]) add(%p, %f), backend_config={"estimated_cycles":"100"}
}

%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  ROOT %w = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%p), condition=%few, body=%inner, metadata={op_name="f(g)"}
}

%slow (p: f32[8]) -> f32[8] {
  ROOT %m = f32[8]{0:T(128)} multiply(%p, %p), backend_config={"estimated_cycles":"7"}
}

%fast (p: f32[8]) -> f32[8] {
  ROOT %m = f32[8]{0:T(128)} multiply(%p, %p), backend_config={"estimated_cycles":"3"}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0:T(128)} parameter(0)
  %w = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%p), condition=%many, body=%outer
  %r = f32[8]{0:T(128)} all-reduce-start(%p), to_apply=%sum
  ROOT %c = f32[8]{0:T(128)} conditional(%p, %p, %p), branch_computations={%fast, %slow}, metadata={op_name="c"}
}
"""


def test_loops_are_multiplied_out_and_the_quicker_branch_counts():
    program = SimpleNamespace(
        as_text=lambda: PROGRAM, memory_analysis=lambda: SimpleNamespace(temp_size_in_bytes=2**20)
    )
    view = accelerators.view(program, "v5e")
    assert view.cycles == 10 * 5 * 100 + 3
    assert view.milliseconds == pytest.approx(view.cycles / 1.5e6)
    assert (view.longest_loop, view.scatters, view.temporaries) == (10, 10 * 5, 2**20)
    assert view.collectives == {"all-reduce": 1}


@pytest.mark.parametrize(
    ("case", "form"),
    [(CROP, ""), (ROI, "[B, N, 4]"), (PYRAMID, "[B, N, 4]"), (ONE, "vmap over boxes")],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_all_compute_the_same(case, form):
    data = make(case)
    ours, *others = (
        jax.jit(jax_function(accelerators_page.in_form(crop, form), case, "forward"))(data)
        for crop in accelerators_page.IMPLEMENTATIONS.values()
    )
    for other in others:
        np.testing.assert_allclose(other, ours, atol=1e-3)


def test_page(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n## TPU v5e\n\nold\n\n## H100\n\nstays\n")
    monkeypatch.setattr(accelerators_page, "PAGE", page)
    monkeypatch.setattr(accelerators_page.importlib.metadata, "version", lambda package: "1.2.3")
    view = accelerators.View(3_000_000, 2.0, 12345, 4, 1, 7, 2**20, {"all-reduce": 3})
    accelerators_page.write("v5e", [accelerators_page.Row("case", "forward", {"jax_crop": view, "jnp": None})])
    assert page.read_text() == (
        f"# Title\n\n## TPU v5e\n\njax {jax.__version__}, libtpu 1.2.3.\n\n### Forward\n\n"
        "|  | jax_crop | jnp |\n| --- | ---: | ---: |\n"
        "| case | 2.00 ms, 4 gathers, 1 scatter, loop of 12,345; 1.00 MiB | needs more memory than there is |\n"
        "\n## H100\n\nstays\n"
    )
    assert accelerators_page.cell(view._replace(milliseconds=None), "h100").startswith("7 kernels, 1 scatter, loop")
    assert accelerators_page.cell(view, "pod") == "3 all-reduces"
