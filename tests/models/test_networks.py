"""The three networks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cryoray.models.networks import DEFAULT_MEMBERS, build, logits, parameters


@pytest.mark.parametrize("config", DEFAULT_MEMBERS)
@pytest.mark.parametrize("box", [32, 64, 70])
def test_each_member_judges_any_box(config, box):
    network = build(config, 3, 0)
    assert logits(network, torch.randn(2, box, box), torch.randn(2, 3)).shape == (2,)


def test_members_differ_in_depth_width_and_activation_and_stay_small():
    assert len({sum(m.blocks) for m in DEFAULT_MEMBERS}) == 3
    assert len({m.width for m in DEFAULT_MEMBERS}) >= 2
    assert len({m.activation for m in DEFAULT_MEMBERS}) == 3
    for config in DEFAULT_MEMBERS:
        assert 0.15e6 < parameters(build(config, 8, 0)) < 3e6


def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = (
        build(DEFAULT_MEMBERS[0], 2, seed).get_parameter("stem.0.weight") for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_weights_are_a_function_of_the_seed_where_several_threads_build_at_once():
    def weights(seed):
        return torch.cat([p.flatten() for p in build(DEFAULT_MEMBERS[1], 3, seed).parameters()])

    seeds = [*range(4)] * 25
    alone = [weights(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(weights, seeds))
    assert all(torch.equal(w, alone[seed]) for w, seed in zip(together, seeds, strict=True))


def test_an_images_logit_does_not_depend_on_the_rest_of_its_batch():
    network = build(DEFAULT_MEMBERS[1], 1, 0)
    for p in network.parameters():  # residual blocks start as identities: wake them up
        torch.nn.init.normal_(p, 0, 0.1, generator=torch.Generator().manual_seed(0))
    images, features = torch.randn(37, 64, 64), torch.randn(37, 1)
    together = logits(network, images, features)
    alone = torch.cat([logits(network, images[i : i + 1], features[i : i + 1]) for i in range(37)])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_missing_feature_is_not_a_zero():
    network = build(DEFAULT_MEMBERS[0], 2, 0)
    network.standardise(torch.tensor([[1.0, 5.0], [3.0, torch.nan]]))
    np.testing.assert_allclose(network.feature_mean, [2.0, 5.0])
    images = torch.randn(1, 32, 32)
    mean = logits(network, images, torch.tensor([[2.0, 5.0]]))
    missing = logits(network, images, torch.tensor([[torch.nan, 5.0]]))
    assert torch.isfinite(missing).all()
    assert not torch.equal(mean, missing)


@pytest.mark.parametrize("seen", [[4.5, 4.5, 4.5], [torch.nan] * 3, [torch.nan, 4.5, torch.nan]])
def test_a_feature_that_said_nothing_in_training_says_nothing_later(seen):
    network = build(DEFAULT_MEMBERS[0], 2, 0)
    network.standardise(torch.tensor([[1.0, 2.0, 3.0], seen]).T)
    images = torch.randn(1, 32, 32)
    said = [logits(network, images, torch.tensor([[2.5, x]])) for x in (4.5, 7.0, torch.nan)]
    assert torch.equal(said[0], said[1])
    assert torch.equal(said[0], said[2])
    assert not torch.equal(said[0], logits(network, images, torch.tensor([[1.0, 4.5]])))


def test_a_network_without_metadata_takes_none():
    network = build(DEFAULT_MEMBERS[0], 0, 0)
    assert network.metadata is None
    assert logits(network, torch.randn(2, 32, 32), torch.empty(2, 0)).shape == (2,)
