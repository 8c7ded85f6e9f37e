"""Movies: z-scored, drawn by their seed, with the spectra and motion that they are named by."""

from __future__ import annotations

import pytest
import torch

from backlight.data.retina_stimuli import STIMULI, flashes, moving_bars, natural_movie, stimulus, white_noise
from backlight.errors import InputError, UnknownNameError


@pytest.mark.parametrize("name", STIMULI)
def test_moments_and_seeds(name: str) -> None:
    state = torch.random.get_rng_state()
    movie = STIMULI[name](120, (9, 12), seed=3)
    assert movie.shape == (120, 9, 12)
    assert float(movie.double().mean()) == pytest.approx(0, abs=1e-6)
    assert float(movie.double().std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert torch.equal(movie, STIMULI[name](120, (9, 12), seed=3))
    assert not torch.equal(movie, STIMULI[name](120, (9, 12), seed=4))
    assert torch.equal(state, torch.random.get_rng_state())


def test_white_noise_is_held_checks() -> None:
    movie = white_noise(40, (6, 8), check=2, hold=4, seed=1)
    assert len(movie.unique()) == 2
    assert torch.equal(movie[0::4].repeat_interleave(4, 0), movie)
    assert torch.equal(movie[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2), movie)
    assert not torch.equal(movie[0], movie[4])


def test_natural_movie_has_a_falling_spectrum_and_stands_without_jitter() -> None:
    still = natural_movie(60, (24, 24), jitter=0.0, fixation=20, seed=0)
    assert torch.equal(still[0].expand(20, -1, -1), still[:20])
    assert not torch.equal(still[19], still[20])
    movie = natural_movie(1500, (24, 24), fixation=5, seed=0)
    power = torch.fft.rfft2(movie * torch.hann_window(24)[:, None] * torch.hann_window(24)).abs().square().mean(0)
    low, high = power[0, 2], power[0, 8]
    assert 8 < float(low / high) < 40  # 1 / f^2 in power: (8 / 2)^2 = 16, and some blur


def test_bars_move_at_their_speed() -> None:
    """The middle of a bar's light, weighed by its contrast, moves by `speed` along a line."""
    movie = moving_bars(121, (40, 40), width=4.0, speed=0.5, seed=2)  # a bar crosses in 130 frames
    weight = (movie - movie[0, 0, 0]).abs()
    grid = torch.arange(40.0)
    places = torch.stack([(weight.sum(2) @ grid), (weight.sum(1) @ grid)], 1) / weight.sum((1, 2))[:, None]
    moved = (places[70] - places[60]).norm() / 10  # about the middle, where no corner cuts the bar off
    assert float(moved) == pytest.approx(0.5, rel=0.15)


def test_flashes_fill_the_field() -> None:
    movie = flashes(100, (3, 4), period=20)
    assert torch.equal(movie, movie[:, :1, :1].expand_as(movie))
    assert torch.equal(movie[10:20], movie[30:40])  # grey between flashes
    assert not torch.equal(movie[0], movie[20])


def test_several_movies_in_a_row_and_errors() -> None:
    both = stimulus(["white_noise", "flashes"], 101, (4, 4), seed=2)
    assert torch.equal(both[:50], white_noise(50, (4, 4), seed=2018))
    assert torch.equal(both[50:], flashes(51, (4, 4), seed=2019))
    with pytest.raises(UnknownNameError, match="white_noise"):
        stimulus("whitenoise", 10, (4, 4))
    with pytest.raises(InputError, match="1 frames for 2"):
        stimulus(["flashes", "flashes"], 1, (4, 4))
    with pytest.raises(InputError, match="from 1 on"):
        white_noise(0, (4, 4))
