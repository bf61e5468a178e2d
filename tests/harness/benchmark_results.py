"""Results that nobody measured."""

from monitor.bench.result import BundleShape, Ratio, Result, Scope, Series, StepProfile, Traffic
from monitor.engine.offline import Facts

FACTS = Facts(
    device="A fine GPU",
    dtype="bfloat16",
    compilation="VLLM_COMPILE",
    cudagraphs="FULL_AND_PIECEWISE",
    runner="V2",
    max_num_batched_tokens=8192,
    prefix_caching=True,
    async_scheduling=True,
    rss_peak_mib=1234.5,
    cuda_peak_mib=17000.25,
)


def series(arm: str, ratio: Ratio | None, *, metric: str = "decode", batch: int | None = 8) -> Series:
    return Series(arm, metric, "tokens/s", True, batch, [1.0, 2.0], 1.5, (1.25, 1.75), ratio)


def result(model: str = "tiny") -> Result:
    return Result(
        format=1,
        kind="engine",
        created="2026-01-01T00:00:00Z",
        model=model,
        dummy_weights=True,
        description="decode: 64 + 32 tokens a request",
        versions={"plumbob": "0", "vllm": "0", "torch": "0"},
        bundle=BundleShape(probes=48, layers=[1, 2, 3], vectors=1, synthetic=True),
        rounds=2,
        series=[series("stock", None), series("scoring", Ratio(0.99, 0.97, 1.01))],
        engines={"stock": FACTS, "tapped": FACTS},
        traffic={"scoring": Traffic(requests=16, sent=70, frames=66, lost=4, steered=0, streamed=0)},
        profiles=[
            StepProfile(
                "scoring",
                8,
                31,
                4000.0,
                500.0,
                [Scope("plumbob::tap", "step", 3.0, 160.0), Scope("plumbob_tap", "device", 3.0, 25.0)],
            )
        ],
    )
