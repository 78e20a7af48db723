"""Forecasts: what is read from compiled programs, and programs compiled for a TPU without one."""

import dataclasses
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from experiments.forecast import alternatives
from experiments.forecast.alternatives import Alternative, fastest, forecast_alternatives, nearby
from experiments.forecast.environment import ENVIRONMENT
from experiments.forecast.estimates import estimate, gpu_traffic
from experiments.forecast.forecast import Forecast, _compile_seconds
from experiments.forecast.hlo import (
    KINDS,
    Program,
    count_bytes,
    product_flops,
    sent_bytes,
    traffic,
)
from experiments.forecast.kernels import take_bundles
from experiments.forecast.machines import GPUS, TPUS, find
from experiments.forecast.programs import Compiled
from experiments.forecast.shapes import SHAPES
from experiments.forecast.show import as_page, compare, table, total
from tests.helpers.cases import slow_after
from tests.helpers.tiny_programs import DEPTH_ENTRIES
from wayward_jax.errors import InputError
from wayward_jax.models.families import FAMILIES

# A loop of seven turns: a product with something fused into it, a kernel, a copy, a sum over
# devices and a norm. A transposition stands before the loop.
TPU_PROGRAM = """
HloModule jit_step, is_scheduled=true

%product (param_0: bf16[256,128], param_1: bf16[128,64]) -> bf16[256,64] {
  %param_0 = bf16[256,128]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[128,64]{1,0} parameter(1)
  %convolution.1 = f32[256,64]{1,0} convolution(%param_0, %param_1), dim_labels=bf_io->bf
  ROOT %convert.1 = bf16[256,64]{1,0} convert(%convolution.1)
}

%relayout (param_0.1: bf16[256,64]) -> bf16[64,256] {
  %param_0.1 = bf16[256,64]{1,0} parameter(0)
  ROOT %transpose.1 = bf16[64,256]{1,0} transpose(%param_0.1), dimensions={1,0}
}

%norm (param_0.2: f32[256,64]) -> f32[256] {
  %param_0.2 = f32[256,64]{1,0} parameter(0)
  ROOT %multiply.1 = f32[256]{0} multiply(%param_0.2, %param_0.2)
}

%body (state: (s32[], bf16[256,128])) -> (s32[], bf16[256,128]) {
  %state = (s32[]{:T(128)}, /*index=1*/bf16[256,128]{1,0}) parameter(0)
  %x = bf16[256,128]{1,0} get-tuple-element(%state), index=1
  %mask = f32[2,128,128]{2,1,0} constant({...})
  %out = bf16[256,64]{1,0} fusion(%x, %x), kind=kOutput, calls=%product, backend_config={"estimated_cycles":"1000"}
  %mixed = bf16[256,64]{1,0} custom-call(%mask, %out, %out, %out), custom_call_target="tpu_custom_call"
  %moved = bf16[64,256]{1,0} fusion(%mixed), kind=kLoop, calls=%relayout, backend_config={"estimated_cycles":"30"}
  %all = bf16[64,256]{1,0} all-reduce(%moved), to_apply=%sum, backend_config={"estimated_cycles":"500"}
  %length = f32[256]{0} fusion(%all), kind=kLoop, calls=%norm, backend_config={"estimated_cycles":"200"}
  ROOT %next = (s32[], bf16[256,128]{1,0}) tuple(%x, %x)
}

%condition (state.1: (s32[], bf16[256,128])) -> pred[] {
  %state.1 = (s32[], bf16[256,128]{1,0}) parameter(0)
  %turn = s32[] get-tuple-element(%state.1), index=0
  %turns = s32[]{:T(128)} constant(7)
  ROOT %goes_on = pred[]{:T(512)} compare(%turn, %turns), direction=LT
}

ENTRY %main (argument: bf16[256,128]) -> bf16[256,128] {
  %argument = bf16[256,128]{1,0} parameter(0)
  %first = bf16[128,256]{1,0} transpose(%argument), dimensions={1,0}, backend_config={"estimated_cycles":"4"}
  %zero = s32[] constant(0)
  %before = (s32[], bf16[256,128]{1,0}) tuple(%zero, %argument)
  %after = (s32[], bf16[256,128]{1,0}) while(%before), condition=%condition, body=%body
  ROOT %result = bf16[256,128]{1,0} get-tuple-element(%after), index=1
}
"""  # noqa: E501

GPU_PROGRAM = """
HloModule jit_step, is_scheduled=true

%gemm (p0: bf16[4096,1280], p1: bf16[1280,5120]) -> bf16[4096,5120] {
  %p0 = bf16[4096,1280]{1,0} parameter(0)
  %p1 = bf16[1280,5120]{1,0} parameter(1)
  ROOT %dot.1 = bf16[4096,5120]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a: bf16[4096,1280], b: bf16[1280,5120]) -> bf16[4096,5120] {
  %a = bf16[4096,1280]{1,0} parameter(0)
  %b = bf16[1280,5120]{1,0} parameter(1)
  %c = bf16[4096,5120]{1,0} fusion(%a, %b), kind=kCustom, calls=%gemm
  ROOT %d = bf16[4096,5120]{1,0} copy(%c)
}
"""  # noqa: E501


def test_the_cycles_of_a_tpu_program_are_summed_by_kind_with_its_loops():
    found = estimate(Compiled(TPU_PROGRAM, 0, 0.0, {"mixed": 3000}), TPUS["v5e"])
    cycles = {kind: seconds * TPUS["v5e"].clock for kind, seconds in found.items()}
    assert cycles == {
        "products": pytest.approx(7 * 1000),
        "attention kernel": pytest.approx(7 * 2 * (525 + 3000)),  # two rows; 0.35 us at 1.5 GHz
        "norms and elementwise": pytest.approx(7 * 200),
        "copies": pytest.approx(7 * 30 + 4),
        "gathers": 0,
        "collectives": pytest.approx(7 * 500),
    }


@pytest.mark.parametrize(
    ("machine", "bundles", "seconds"),
    [
        ("v5e", 10, 2 * 0.35e-6 + (2 * 128 * 128 * 4 + 4 * 256 * 64 * 2) / 0.82e12),
        ("v5p", 3000, 0.35e-6 + 3000 / 1.75e9),  # a row on each of two cores
    ],
)
def test_an_attention_kernel_on_a_tpu_takes_as_long_as_its_instructions_or_its_traffic(
    machine, bundles, seconds
):
    found = estimate(Compiled(TPU_PROGRAM, 0, 0.0, {"mixed": bundles}), TPUS[machine])
    assert found["attention kernel"] == pytest.approx(7 * seconds)


def test_equal_kernels_take_as_long_as_the_one_that_libtpu_wrote_down():
    line = next(each for each in TPU_PROGRAM.splitlines() if "%mixed =" in each)
    twice = TPU_PROGRAM.replace(line, f"{line}\n{line.replace('%mixed', '%again')}")
    written = Compiled(TPU_PROGRAM, 0, 0.0, {"mixed": 3000})
    both = estimate(Compiled(twice, 0, 0.0, {"again": 3000}), TPUS["v5e"])
    assert both["attention kernel"] == 2 * estimate(written, TPUS["v5e"])["attention kernel"]


def test_a_libtpu_that_tells_no_instructions_is_refused_with_one_that_does():
    with pytest.raises(InputError, match="jax\\[tpu\\]"):
        estimate(Compiled(TPU_PROGRAM, 0, 0.0), TPUS["v5e"])


def test_bundles_are_counted_by_operation_and_their_files_removed(tmp_path):
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    text = "== CAPACTIY:\nMXU, SALU\n    4     2\n== UTILIZATION:\n0 0\n1 0\n0 2\n"
    name = "1795829415564307442-mix_gradients.6-00-pre-delay_hlo-static-per-bundle-utilization.txt"
    (dumps / name).write_text(text)
    (dumps / "1795829415564307442-TLP-hlo.txt").write_text("HloModule jit_step")
    assert take_bundles(dumps) == {"mix_gradients.6": 3}
    assert not dumps.exists()
    assert take_bundles(dumps) == {}


def test_a_fusion_reads_no_more_of_an_operand_than_the_slices_and_rows_that_it_takes():
    text = """
%parts (p0: bf16[100,30], p1: f32[50,8], p2: s32[4,1], p3: f32[10]) -> f32[100,10] {
  %p0 = bf16[100,30]{1,0} parameter(0)
  %p1 = f32[50,8]{1,0} parameter(1)
  %p2 = s32[4,1]{1,0} parameter(2)
  %p3 = f32[10]{0} parameter(3)
  %first = bf16[100,10]{1,0} slice(%p0), slice={[0:100], [0:10]}
  %rows = f32[4,8]{1,0} gather(%p1, %p2), offset_dims={1}
  %part = f32[5]{0} slice(%p3), slice={[0:5]}
  %whole = f32[10]{0} negate(%p3)
  ROOT %sum = f32[100,10]{1,0} custom-call(%first, %rows, %part, %whole)
}

ENTRY %main (a: bf16[100,30], b: f32[50,8], c: s32[4,1], d: f32[10]) -> f32[100,10] {
  %a = bf16[100,30]{1,0} parameter(0)
  %b = f32[50,8]{1,0} parameter(1)
  %c = s32[4,1]{1,0} parameter(2)
  %d = f32[10]{0} parameter(3)
  ROOT %e = f32[100,10]{1,0} fusion(%a, %b, %c, %d), kind=kLoop, calls=%parts
}
"""
    program = Program.parse(text)
    ((operation, _),) = program.executed()
    read = 100 * 10 * 2 + 4 * 8 * 4 + 4 * 4 + 10 * 4
    assert traffic(program, operation) == read + 100 * 10 * 4
    assert gpu_traffic(Compiled(text, 0, 0.0)) == read + 100 * 10 * 4


def test_a_gpu_kernel_takes_as_long_as_its_products_or_its_traffic():
    program = Program.parse(GPU_PROGRAM)
    flops = 2 * 4096 * 1280 * 5120
    assert [product_flops(program, each) for each, _ in program.executed()] == [flops, 0]
    found = estimate(Compiled(GPU_PROGRAM, 0, 0.0), GPUS["h100"])
    assert found["products"] == pytest.approx(flops / (0.7 * 989e12) + 2e-6)
    assert found["copies"] == pytest.approx(2 * 4096 * 5120 * 2 / 3.35e12 + 2e-6)


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        (
            "f32[8,5] all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%s",
            2 * 160 * 3 / 4,
        ),
        ("f32[8,5] all-reduce(%x), replica_groups=[2,8]<=[16], to_apply=%s", 2 * 160 * 7 / 8),
        ("f32[8,5] all-reduce(%x), replica_groups={{0},{1}}, to_apply=%s", 0),
        (
            "f32[8,5] all-reduce(%x), replica_groups=mesh['runs'=2,'data'=4,'model'=1] {'data'}, "
            "to_apply=%s",
            2 * 160 * 3 / 4,
        ),
        ("f32[8,5] all-gather(%x), replica_groups=mesh['a'=4,'b'=4] {'a','b':(2)2}", 160 * 7 / 8),
        ("f32[8,5] all-reduce(%x), replica_groups=mesh['runs'=8,'data'=1] {'data'}", 0),
        ("f32[8,5] all-gather(%x), replica_groups=[4,2]<=[8], dimensions={0}", 160 / 2),
        ("f32[8,5] collective-permute(%x), source_target_pairs={{0,1},{1,0}}", 160),
    ],
)
def test_a_collective_sends_its_array_around_a_ring_once_or_to_sum_up_twice(line, sent):
    program = Program.parse(f"ENTRY %main (a: f32[8,5]) -> f32[8,5] {{\n  %y = {line}\n}}")
    ((operation, _),) = program.executed()
    assert sent_bytes(operation) == sent


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("bf16[3,5]{1,0:T(8,128)(2,1)S(1)}", 30),
        ("(s32[], /*index=1*/f32[2,2]{1,0}, pred[7]{0})", 4 + 16 + 7),
        ("f8e4m3fn[10]{0}", 10),
        ("token[]", 0),
    ],
)
def test_bytes_of_a_type_are_those_of_its_arrays(text, size):
    assert count_bytes(text) == size


@pytest.mark.parametrize(
    ("name", "parameters"),
    slow_after(
        3,
        [
            ("gpt2", 124_439_808),
            ("gpt2-medium", 354_823_168),
            ("gpt2-large", 774_030_080),
            ("gpt2-xl", 1_557_611_200),
            ("llama-3-8b", 8_030_261_248),
            ("llama-3.2-1b", 1_235_814_400),
            ("qwen2.5-0.5b", 494_032_768),
            ("gemma-3-270m", 268_098_176),
            ("pythia-410m", 405_334_016),
            ("smollm2-135m", 134_515_008),
        ],
    ),
)
def test_shapes_have_as_many_parameters_as_the_published_models(name, parameters):
    """All layers have as many, so that two are enough to count."""
    entries = SHAPES[name]
    module_of = FAMILIES[entries["model_type"]].module_of
    ids = jnp.zeros((1, 1), jnp.int32)

    def counted(layers):
        module = module_of({**entries, DEPTH_ENTRIES[entries["model_type"]]: layers})
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), ids, method="text_logits"))
        return sum(x.size for x in jax.tree.leaves(shapes))

    one, two = counted(1), counted(2)
    assert one + (module_of(entries).config.depth - 1) * (two - one) == parameters


PART = Forecast(
    model="gpt2",
    task="sst2",
    mesh="runs:8,data:1,model:1",
    populations=2,
    runs=30,
    steps=100,
    programs=3,
    device_memory=16 * 2**30,
    step_memory=4 * 2**30,
    evaluation_memory=2**30,
    refusal="",
    step_seconds=0.04,
    shares=dict.fromkeys(KINDS, 0.1),
    utilization=0.5,
    host_seconds=0.1,
    compile_seconds=600,
    seconds=3000,
)
REFUSED = dataclasses.replace(PART, refusal="takes 17.0 GiB", step_seconds=0, seconds=0)


def print_rows(shown):
    """Prints something as the terminal shows it, and splits each line at two blanks or more."""
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(shown)
    return [re.split(r"\s{2,}", line.strip()) for line in console.export_text().splitlines()]


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", "v5e:2", "h100:2x2", "cpu"])
def test_a_topology_that_is_none_is_refused_with_those_that_are(topology):
    with pytest.raises(InputError, match="v5e:2x4"):
        find(topology)


def test_a_gpu_has_its_traffic_beside_a_tpu_that_has_none():
    rows = print_rows(table({"v5e:2x2": PART, "h100": dataclasses.replace(PART, traffic=139.4e9)}))
    assert ["traffic of a step", "139 GB"] in rows


def test_a_job_costs_the_hours_of_all_devices_and_one_that_does_not_fit_has_no_cost():
    whole = total({"v5e:2x4": (8, [PART]), "v5e:2x2": (4, [REFUSED])}, 1.5)
    page = as_page([whole, "An estimate."])
    assert "12.00" in page
    assert "An estimate." in page
    both = [table({"v5e:2x4": PART, "v5e:2x2": REFUSED}), whole]
    shown = {label: values for each in both for label, *values in print_rows(each)}
    assert shown["cost"] == ["12.00"]  # an hour of 8 devices
    assert shown["together"] == ["60 min"]
    assert shown["tuning and evaluation"] == ["50 min", "does not fit"]
    assert shown["mesh"] == 2 * ["runs:8,data:1,model:1"]
    assert shown["fits"] == ["yes", "takes 17.0 GiB"]
    assert shown["memory of the largest step"][0] == "4.0 of 16.0 GiB"
    assert shown["laying out a step, host"] == ["100 ms, longer than the step"]
    assert "traffic of a step" not in shown  # no compiler of a TPU says it


@pytest.mark.parametrize(
    ("mesh", "populations", "runs", "batch_size", "found"),
    [
        ("runs:1,data:1,model:1", 1, 1, 8, []),
        ("runs:1,data:1,model:1", 3, 1, 8, [{"population": 2}]),
        ("runs:1,data:1,model:1", 1, 7, 8, [{"population": 3}]),
        (
            *("runs:4,data:1,model:2", 2, 30, 8),
            [
                {"population": 15},
                {"population": 60},
                {"mesh": {"runs": 2, "data": 2, "model": 2}},
                {"mesh": {"runs": 2, "data": 1, "model": 4}},
                {"mesh": {"runs": 8, "data": 1, "model": 1}},
                {"mesh": {"runs": 4, "data": 2, "model": 1}},
            ],
        ),
        (
            "runs:1,data:2,model:3",
            1,
            1,
            8,
            [
                {"mesh": {"runs": 2, "data": 1, "model": 3}},
                {"mesh": {"runs": 1, "data": 1, "model": 6}},
            ],
        ),
        # A step of one example is not divided.
        ("runs:2,data:1,model:1", 1, 1, 1, [{"mesh": {"runs": 1, "data": 1, "model": 2}}]),
    ],
)
def test_alternatives_are_half_and_twice_the_prompts_and_the_meshes_of_as_many_devices(
    mesh, populations, runs, batch_size, found
):
    part = dataclasses.replace(PART, mesh=mesh, populations=populations, runs=runs)
    assert nearby(part, batch_size) == found


def test_each_alternative_is_forecast_with_one_setting_changed(monkeypatch, given):
    seen = []

    def forecast(settings, *rest):
        seen.append(settings)
        return 8, [PART]

    monkeypatch.setattr(alternatives, "forecast", forecast)
    settings = given(batch_size=8)
    # The part that does not fit is the one to change.
    small = dataclasses.replace(PART, runs=4)
    found = forecast_alternatives(settings, None, "v5e:2x4", [small, REFUSED], None)
    assert [each.flag for each in found] == [
        "",
        "--population=15",
        "--population=60",
        "--mesh=runs:4,data:2,model:1",
        "--mesh=runs:4,data:1,model:2",
    ]
    for each, own in zip(found[1:], seen, strict=True):
        name, value = each.flag.removeprefix("--").split("=")
        assert own == given(batch_size=8, **{name: value})


def test_the_fastest_alternative_is_among_those_that_fit():
    faster = dataclasses.replace(PART, seconds=1200, utilization=0.8, step_seconds=0.016)
    as_it_is = Alternative("", [PART, faster])
    half, twice = Alternative("--population=15", [PART]), Alternative("--population=60", [REFUSED])
    assert fastest([as_it_is, half, twice]) is half
    assert fastest([twice]) is None
    rows = print_rows(compare("v5e:2x4", [as_it_is, half, twice]))
    assert [row for row in rows if row != [""]] == [
        ["v5e:2x4, with", "runs each", "largest step", "utilization", "time"],
        ["these flags", "30", "4.0 of 16.0 GiB", "0.59", "70 min"],  # (4 x 0.5 + 1.6 x 0.8) / 5.6
        ["--population=15", "30", "4.0 of 16.0 GiB", "0.50", "50 min"],
        ["--population=60", "30", "4.0 of 16.0 GiB", "no room"],
        ["Fastest: --population=15"],
    ]


@pytest.mark.parametrize(
    ("topology", "extra"), [("v5e:2x4", "forecast-tpu"), ("h100", "forecast-gpu")]
)
def test_a_missing_compiler_is_named_with_the_command_that_installs_it(
    topology, extra, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"pip install -e '\.\[{extra}\]'"):
        find(topology)


@pytest.mark.parametrize(("processes", "seconds"), [(1, 50.0), (2, 130.0)])
def test_one_process_compiles_side_by_side_and_several_one_after_the_other(processes, seconds):
    plan = SimpleNamespace(shapes=("short", "long"))
    mesh = SimpleNamespace(is_multi_process=processes > 1)
    training, scoring = Compiled("", 0, seconds=50.0), Compiled("", 0, seconds=30.0)
    assert _compile_seconds(plan, mesh, training, scoring) == seconds


# Learned positions; rotary ones with grouped heads; these with norms of heads and a window, too.
FEW = ("gpt2", "llama", "gemma3_text")


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install .[forecast-tpu]"
)


@pytest.mark.slow
@needs_libtpu
def test_the_slices_that_are_rented_with_one_host_are_one_process():
    code = """if True:
        from experiments.forecast.machines import find
        for topology in ("v5e:2x2", "v5e:2x4", "v6e:2x4", "v5e:4x4"):
            print(topology, len({device.process_index for device in find(topology)[1]}))
    """
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, check=True, capture_output=True, env=os.environ | ENVIRONMENT)
    assert done.stdout.split() == b"v5e:2x2 1 v5e:2x4 1 v6e:2x4 1 v5e:4x4 4".split()


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "axis", "families"),
    [
        ("v5e:2x2", "runs", tuple(FAMILIES)[::2]),
        ("v5e:2x2", "runs", tuple(FAMILIES)[1::2]),
        ("v5e:2x2", "data", FEW),
        ("v5e:2x2", "model", FEW),
        ("v5p:2x2x1", "runs", FEW),
        ("v6e:2x2", "runs", FEW),
    ],
    ids=lambda part: part if isinstance(part, str) else f"{len(part)} families",
)
def test_steps_compile_for_a_tpu_with_the_kernel_and_runs_never_communicate(
    topology, axis, families
):
    words = [sys.executable, "-m", "tests.helpers.compile_for_tpu", topology, axis, *families]
    done = subprocess.run(words, check=True, capture_output=True)
    found = json.loads(done.stdout)
    assert found.keys() == set(families)
    for programs in found.values():
        # There is one layer, and scoring has no backward pass.
        assert programs["train"]["attention kernel"] == 2
        assert programs["score"]["attention kernel"] == 1
        # Examples that are divided have their gradients summed; their scores stay apart.
        assert (programs["train"]["collectives"] > 0) == (axis != "runs")
        assert (programs["score"]["collectives"] > 0) == (axis == "model")
        assert all(0 < program["memory"] < 32 * 2**20 for program in programs.values())
        # Two steps: a compiler's estimate does not depend on the machine that it runs on.
        assert programs["train"]["cycles"] < 1.5e6
