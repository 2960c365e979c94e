import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from ditprune.families import Batch, DiT
from ditprune.sampling import draw_noise, sample_generator, sample_latents


def generators(ids, seed=0):
    return [sample_generator(seed, i) for i in ids]


def draw(model, scheduler, ids, guidance_scale=2.0, steps=4):
    rows = generators(ids)
    noise = draw_noise((1, 8, 8), rows)
    return sample_latents(
        model,
        DiT(),
        scheduler,
        noise,
        torch.tensor(ids) % 10,
        rows,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
    )


def test_a_samples_noise_is_its_own_whatever_is_drawn_beside_it():
    together = draw_noise((3, 4), generators([0, 1, 2]))
    assert torch.equal(draw_noise((3, 4), generators([2]))[0], together[2])


def test_seeds_ids_and_streams_give_other_noise():
    rows = [sample_generator(*key) for key in ((0, 1), (1, 0), (0, 0), (0, 0, "vae"), (1, 10))]
    draws = draw_noise((8,), [*rows, sample_generator(11, 0)])
    assert len({tuple(row.tolist()) for row in draws}) == 6


def test_the_global_generator_is_left_alone(tiny_dit, scheduler):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(tiny_dit, scheduler, [0, 1])
    draw(tiny_dit, DDPMScheduler(), [0, 1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "kind", [DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler]
)
def test_a_sample_is_the_same_alone_and_in_a_batch(tiny_dit, kind):
    together = draw(tiny_dit, kind(), [3, 4, 5])
    alone = draw(tiny_dit, kind(), [4])
    assert torch.allclose(alone[0], together[1], rtol=1e-4, atol=1e-3)


def test_guidance_of_one_is_the_conditional_prediction_and_of_zero_the_other():
    branches = torch.tensor([[[3.0]], [[1.0]]])
    assert [DiT().guide(branches, scale, 1.0).item() for scale in (1.0, 0.0, 2.0)] == [3, 1, 5]
    assert DiT().guide(branches[:1], 7.0, 1.0).item() == 3


def test_ddim_agrees_with_its_own_formula(tiny_dit, scheduler):
    """Song et al. 2021, Eq. 12 with eta = 0, two steps, from the scheduler's noise levels."""
    noise = draw_noise((1, 8, 8), generators([7]))
    label = torch.tensor([7])
    alphas = scheduler.alphas_cumprod
    x = noise
    for timestep, alpha_next in ((500, alphas[0]), (0, torch.tensor(1.0))):
        with torch.no_grad():
            conditional, null = DiT().predict(tiny_dit, batch_of(x, timestep, label))
        epsilon = null + 2.0 * (conditional - null)
        alpha = alphas[timestep]
        clean = ((x - (1 - alpha).sqrt() * epsilon) / alpha.sqrt()).clamp(-1, 1)
        x = alpha_next.sqrt() * clean + (1 - alpha_next).sqrt() * epsilon
    assert torch.allclose(draw(tiny_dit, scheduler, [7], steps=2), x, atol=1e-4)


def batch_of(x, timestep, label):
    return Batch(x, torch.tensor([timestep]), label, torch.tensor([timestep / 1000]))


def test_a_learned_variance_is_not_taken_for_noise(scheduler):
    class WithVariance(torch.nn.Module):
        config = type("Config", (), {"num_embeds_ada_norm": 10})()

        def forward(self, x, timestep, class_labels):
            noise = torch.zeros_like(x)
            return type("Output", (), {"sample": torch.cat([noise, noise + 100], 1)})()

    drawn = draw(WithVariance(), scheduler, [0])
    assert drawn.shape == (1, 1, 8, 8)
    assert drawn.abs().max() < 50
