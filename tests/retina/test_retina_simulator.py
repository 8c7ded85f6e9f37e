"""The simulated retina against its equations, written as loops; recordings, correlations and noise ceilings."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from backlight.data.retina_stimuli import stimulus
from backlight.errors import InputError, UnknownNameError
from backlight.models.retina import windows
from backlight.retina.recording import Recording, correlations, noise_ceiling, pearson
from backlight.retina.simulator import CELL_TYPES, RetinaSimulator


@pytest.fixture(scope="module")
def simulator() -> RetinaSimulator:
    return RetinaSimulator(cells=5, size=(7, 9), frames=12, subunit=0.6, pool=1.2, delay=3, seed=4)


def test_equations_as_loops(simulator: RetinaSimulator) -> None:
    frames, size = simulator.frames, simulator.size
    movie = torch.randn(frames, *size)
    k, s = simulator.get_buffer("temporal").double(), simulator.get_buffer("spatial").double()
    reach, length = len(s) // 2, k.shape[1]

    def subunit(b: int, t: int, y: int, x: int) -> float:
        total = 0.0
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                if 0 <= y + dy < size[0] and 0 <= x + dx < size[1]:
                    course = movie[t - length + 1 : t + 1, y + dy, x + dx].double()
                    total += float(course @ k[b]) * float(s[reach + dy] * s[reach + dx])
        return max(0.0, total - 0.3)

    rates = simulator(movie[None])[0]
    for c, name in enumerate(simulator.types):
        kind, delay = CELL_TYPES[name], round(CELL_TYPES[name].delay * 3)
        generator = 0.0
        for b in range(4):
            if kind.excitation[b]:
                weights = simulator.get_buffer("excitation")[c, b]
                generator += sum(
                    float(weights[y, x]) * subunit(b, frames - 1, y, x) for y in range(size[0]) for x in range(size[1])
                )
            if kind.inhibition[b]:
                weights = simulator.get_buffer("inhibition")[c, b]
                pooled = sum(
                    float(weights[y, x]) * subunit(b, frames - 1 - delay, y, x)
                    for y in range(size[0])
                    for x in range(size[1])
                )
                generator -= kind.inhibition[b] * max(0.0, pooled - 0.1)
        z = (generator - float(simulator.get_buffer("mean")[c])) / float(simulator.get_buffer("std")[c])
        free = 0.3 * math.log1p(math.exp(2.5 * (z - 0.8)))
        assert float(rates[c]) == pytest.approx(free / (1 + free / 4), rel=1e-3)


def test_movie_is_its_windows_and_causal(simulator: RetinaSimulator) -> None:
    movie = stimulus("natural_movie", 60, simulator.size, seed=1)
    rates = simulator.rates(movie)
    torch.testing.assert_close(rates, simulator(windows(movie, 12)), rtol=1e-4, atol=1e-6)
    changed = movie.clone()
    changed[40:] += 3
    torch.testing.assert_close(simulator.rates(changed)[: 40 - 11], rates[: 40 - 11], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(simulator.rates(changed)[40 - 11 :], rates[40 - 11 :])


def test_types_prefer_what_they_are_named_by() -> None:
    found = RetinaSimulator(size=(15, 15), frames=20, subunit=0.8, pool=1.5)
    bright, dark = torch.zeros(2, 60, 15, 15)
    bright[30:], dark[30:] = 1.0, -1.0
    responses = torch.stack([found.rates(movie)[11:15].amax(0) for movie in (bright, dark)])
    on, off, both, _ = range(4)
    assert responses[0, on] > 5 * responses[1, on]
    assert responses[1, off] > 5 * responses[0, off]
    assert min(responses[:, both]) > 5 * float(found.rates(torch.zeros(60, 15, 15))[0, both])


def test_motion_cells_prefer_a_direction() -> None:
    found = RetinaSimulator(["motion"], size=(21, 21), frames=20, subunit=0.8, pool=1.5, seed=3)
    place, direction = found.get_buffer("places")[0], found.get_buffer("directions")[0]
    y, x = torch.arange(21.0)[:, None], torch.arange(21.0)
    along = (y - place[0]) * direction[0] + (x - place[1]) * direction[1]

    def peak(sign: float) -> float:
        course = torch.arange(70)[:, None, None] * 0.5 - 17
        return float(found.rates(3 * torch.exp(-((sign * along - course) ** 2) / 2)).max())

    # inhibition lies on the side of -direction, and comes late: it meets what comes from there
    assert peak(-1.0) > 1.2 * peak(1.0)


def test_records_and_files(simulator: RetinaSimulator, tmp_path: Path) -> None:
    movie = stimulus("natural_movie", 500, simulator.size, seed=1)
    found = simulator.record(movie, repeats=300, seed=1)
    assert found.rates is not None
    torch.testing.assert_close(found.response.mean(0), found.rates.mean(0), rtol=0.02, atol=1e-3)
    assert torch.equal(found.counts, simulator.record(movie, repeats=300, seed=1).counts)
    assert found.about["types"] == ["ON", "OFF", "ON-OFF", "motion", "ON"]
    found.save(tmp_path / "x.safetensors")
    again = Recording.load(tmp_path / "x.safetensors")
    assert torch.equal(again.counts, found.counts)
    assert torch.equal(again.windows, found.windows)
    assert again.about == found.about
    with pytest.raises(InputError, match="500 frames have 489 windows, and counts 488"):
        Recording(movie, found.counts[:, 1:], 12)
    with pytest.raises(InputError, match="not negative"):
        Recording(movie, -1 - found.counts, 12)


def test_unknown_types_and_sizes() -> None:
    with pytest.raises(UnknownNameError, match="ON-OFF"):
        RetinaSimulator(["ONOFF"])
    with pytest.raises(InputError, match="8 frames or more"):
        RetinaSimulator(frames=7)
    with pytest.raises(InputError, match="expected a movie"):
        RetinaSimulator(["ON"], size=(8, 8), frames=8).rates(torch.zeros(20, 8, 9))


def test_noise_ceiling_is_the_correlation_of_the_truth() -> None:
    draw = torch.Generator().manual_seed(0)
    rates = torch.rand((4000, 3), generator=draw) * torch.tensor([0.2, 1.0, 5.0])
    counts = torch.poisson(rates.expand(10, -1, -1), generator=draw)
    found = noise_ceiling(counts)
    expected = (rates.var(0) / (rates.var(0) + rates.mean(0) / 10)).sqrt()
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0)
    torch.testing.assert_close(correlations(rates, counts.mean(0)), found, rtol=0.03, atol=0)
    assert float(noise_ceiling(torch.poisson(torch.full((2, 500, 1), 0.5), generator=draw))) < 0.45
    assert float(noise_ceiling(torch.ones(3, 10, 1))) == 0
    with pytest.raises(InputError, match="two repeats"):
        noise_ceiling(counts[:1])


def test_pearson_of_constant_columns() -> None:
    x = torch.randn(50, 3)
    x[:, 1] = 0.1
    y = torch.cat((2 - 3 * x[:, :1], torch.randn(50, 1)), 1)
    found = pearson(x, y)
    assert float(found[0, 0]) == pytest.approx(-1)
    assert found[1].tolist() == [0, 0]
    expected = torch.corrcoef(torch.cat((x, y), 1).T.double())[0, 4]
    torch.testing.assert_close(found[0, 1], expected)
