"""Plausible slips of a sign, a time, a detach: edits of the package that tests must notice.

Each is a piece of source text that occurs exactly once, what it becomes, and the tests that fail.
The first four are checked by `make test`, all by `make test-all`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """`old` → `new` in stepdistill/`file`; `tests` are node ids below tests/."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "sign of v",
        "process.py",
        "return -sigma, alpha",
        "return sigma, -alpha",
        ("test_process.py::test_conversions_are_those_of_the_papers",),
    ),
    Mutation(
        "dσ/dt of VP",
        "process.py",
        "return -angle.sin() * slope, angle.cos() * slope",
        "return -angle.sin() * slope, -angle.cos() * slope",
        ("test_process.py::test_rates_are_the_derivatives_of_the_scales",),
    ),
    Mutation(
        "missing detach of the consistency target",
        "methods/consistency.py",
        "with torch.no_grad():",
        "with torch.enable_grad():",
        ("test_consistency.py::test_a_student_that_is_its_own_target_does_not_move_it",),
    ),
    Mutation(
        "Heun without its correction",
        "solver.py",
        "x0=(here.x0 + there.x0) / 2, eps=(here.eps + there.eps) / 2",
        "x0=here.x0, eps=here.eps",
        ("test_solver.py::test_heun_under_ve_is_edms",),
    ),
    Mutation(
        "Heun averaging estimates instead of directions",
        "solver.py",
        "process.through(x_t, t, mean)",
        "mean",
        ("test_solver.py::test_heun_elsewhere_is_rectified_flows",),
    ),
    Mutation(
        "Heun under VE in another frame",
        "process.py",
        "line = (0.0, 1.0)",
        "line = (-1.0, 1.0)",
        ("test_solver.py::test_golden_chains_on_karras_grids",),
    ),
    Mutation(
        "Heun's second evaluation at the first time",
        "solver.py",
        "torch.where(last, t, s), cond)",
        "t, cond)",
        ("test_consistency.py::test_the_chain_has_no_loss_and_no_gradient",),
    ),
    Mutation(
        "DDIM with the signal of s and the noise of t",
        "solver.py",
        "x = ddim_step(process, here, s)",
        "x = ddim_step(process, here, s) + here.eps * (process.scales(t)[1] - process.scales(s)[1])"
        "[:, None]",
        ("test_solver.py::test_orders_of_convergence",),
    ),
    Mutation(
        "re-noising to the time just left",
        "solver.py",
        "add_noise(at_t.x0, eps, s.expand(len(x)))",
        "add_noise(at_t.x0, eps, t.expand(len(x)))",
        ("test_solver.py::test_stochastic_sampling_by_hand",),
    ),
    Mutation(
        "one eps for every re-noising",
        "solver.py",
        "if generator is None:",
        "if True:",
        ("test_solver.py::test_stochastic_sampling_preserves_the_marginal",),
    ),
    Mutation(
        "sign of the extrapolation of DPM-Solver++",
        "solver.py",
        "x0s[1] + ratio * (x0s[1] - x0s[0])",
        "x0s[1] - ratio * (x0s[1] - x0s[0])",
        ("test_solver.py::test_dpm_solver_plus_plus",),
    ),
    Mutation(
        "guidance off by one",
        "denoiser.py",
        "torch.as_tensor(self.w, dtype=torch.float64) - 1)",
        "torch.as_tensor(self.w, dtype=torch.float64))",
        ("test_denoiser.py::test_guidance_extrapolates_means",),
    ),
    Mutation(
        "guidance of x0 alone",
        "denoiser.py",
        "eps=given.eps + extra * (given.eps - free.eps)",
        "eps=given.eps",
        ("test_denoiser.py::test_guidance_extrapolates_means",),
    ),
    Mutation(
        "rescheduling with the inverse scale",
        "denoiser.py",
        "there / here)",
        "here / there)",
        ("test_denoiser.py::test_rescheduling_matches_snr_and_rescales_the_state",),
    ),
    Mutation(
        "c_out without its root",
        "denoiser.py",
        "sigma / width)",
        "(sigma / width) ** 2)",
        ("test_denoiser.py::test_skip_is_the_boundary_condition_of_the_papers",),
    ),
    Mutation(
        "sign of EDM's raw output",
        "process.py",
        "return sigma / (self.sigma_data * width), -self.sigma_data * alpha / width",
        "return -sigma / (self.sigma_data * width), self.sigma_data * alpha / width",
        ("test_process.py::test_conversions_are_those_of_the_papers",),
    ),
    Mutation(
        "dσ/dt of TrigFlow without σ_d",
        "process.py",
        "return -t.sin(), self.sigma_data * t.cos()",
        "return -t.sin(), t.cos()",
        ("test_process.py::test_velocities_are_those_of_the_papers",),
    ),
    Mutation(
        "coefficients in the state's half precision",
        "process.py",
        "dtype = torch.promote_types(x.dtype, torch.float32)",
        "dtype = x.dtype",
        ("test_process.py::test_states_are_at_least_float32",),
    ),
    Mutation(
        "averages without warm-up",
        "averages.py",
        "decay = min(self.decay, (1 + self.updates) / (10 + self.updates))",
        "decay = self.decay",
        ("test_averages.py::test_the_first_update_keeps_a_tenth",),
    ),
    Mutation(
        "averages before the step",
        "trainer.py",
        "            optimiser.step()\n"
        '            if turn.player == "student":\n'
        "                self._update_averages()\n",
        '            if turn.player == "student":\n'
        "                self._update_averages()\n"
        "            optimiser.step()\n",
        ("test_averages.py::test_the_trainer_averages_after_the_step",),
    ),
    Mutation(
        "pull without detach",
        "critic.py",
        "(x - gradient.to(x)).detach()",
        "(x - gradient.to(x))",
        ("test_critic.py::test_pull_has_the_gradient_it_is_given",),
    ),
    Mutation(
        "pull without its half",
        "critic.py",
        "return 0.5 * F.mse_loss",
        "return F.mse_loss",
        ("test_critic.py::test_pull_has_the_gradient_it_is_given",),
    ),
    Mutation(
        "realness with real and fake exchanged",
        "critic.py",
        "F.softplus(fake).mean() + F.softplus(-real).mean()",
        "F.softplus(-fake).mean() + F.softplus(real).mean()",
        ("test_critic.py::test_realness_is_the_log_ratio_at_its_optimum",),
    ),
    Mutation(
        "grid that stops above clean data",
        "times.py",
        "return process.t_clean + u * (process.t_max - process.t_clean)",
        "return process.t_min + u * (process.t_max - process.t_min)",
        ("test_times.py::test_grids_fall_from_noise_to_clean_data",),
    ),
    Mutation(
        "trailing timesteps rounded from another expression",
        "times.py",
        "np.arange(whole, 0, -whole / n)[:n]",
        "np.linspace(whole, 0, n + 1)[:n]",
        ("test_reference.py::test_trailing_grids_round_as_diffusers_does",),
    ),
    Mutation(
        "shift towards data",
        "times.py",
        "return shift * u / (1 + (shift - 1) * u)",
        "return u / (shift + (1 - shift) * u)",
        ("test_times.py::test_shifted_grids",),
    ),
    Mutation(
        "last target asked of the network",
        "methods/consistency.py",
        "x_s, p.target(x_s, inside, cond).x0)",
        "p.target(x_s, inside, cond).x0, p.target(x_s, inside, cond).x0)",
        ("test_consistency.py::test_the_last_target_is_the_state_itself",),
    ),
    Mutation(
        "target asked at the student's time",
        "methods/consistency.py",
        "goal = self.goal(p, x_s, s, batch.cond)",
        "goal = self.goal(p, x_s, t, batch.cond)",
        ("test_consistency.py::test_the_gradient_is_that_of_the_formula",),
    ),
    Mutation(
        "pseudo-Huber of the squared width",
        "distances.py",
        "d.square().sum(1) + c * c",
        "d.square().sum(1) + c",
        ("test_distances.py::test_distances_are_the_formulas",),
    ),
)
FIRST = MUTATIONS[:4]
