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
    Mutation(
        "distribution matching uphill",
        "critic.py",
        "return (fake - real) / size",
        "return (real - fake) / size",
        ("test_dmd2.py::test_with_a_constant_normaliser_the_student_descends_the_kl",),
    ),
    Mutation(
        "one normaliser for the whole batch",
        "critic.py",
        "(x - real).abs().flatten(1).mean(dim=1)",
        "(x - real).abs().mean().expand(len(x))",
        ("test_dmd2.py::test_other_samples_do_not_matter_to_a_samples_gradient",),
    ),
    Mutation(
        "normaliser from the critic",
        "critic.py",
        "(x - real).abs()",
        "(x - fake).abs()",
        ("test_dmd2.py::test_the_students_gradient_is_the_formulas",),
    ),
    Mutation(
        "a graph through the teacher",
        "methods/dmd2.py",
        "        with torch.no_grad():\n            real =",
        "        with torch.enable_grad():\n            real =",
        ("test_dmd2.py::test_guidance_moves_the_teacher_and_not_the_critic",),
    ),
    Mutation(
        "guidance on the critic",
        "methods/dmd2.py",
        "fake = p.critic(x_t, t, batch.cond).x0",
        "fake = type(p.teacher)(p.critic, p.teacher.w, p.teacher.null)(x_t, t, batch.cond).x0",
        ("test_dmd2.py::test_guidance_moves_the_teacher_and_not_the_critic",),
    ),
    Mutation(
        "a sample fooled to look fake",
        "critic.py",
        "-fake.mean() if kind ==",
        "fake.mean() if kind ==",
        ("test_dmd2.py::test_the_fooling_gradient_passes_through_a_frozen_critic",),
    ),
    Mutation(
        "softplus fooling loss of the other sign",
        "critic.py",
        "else F.softplus(-fake).mean()",
        "else F.softplus(fake).mean()",
        ("test_critic.py::test_softplus_losses_at_their_ends",),
    ),
    Mutation(
        "fooling without its weight",
        "methods/dmd2.py",
        '"gan": self.gan * gan}',
        '"gan": gan}',
        ("test_dmd2.py::test_the_fooling_gradient_passes_through_a_frozen_critic",),
    ),
    Mutation(
        "carried sample ignored",
        "methods/dmd2.py",
        "p.carry if carried else self.fresh(p, batch)",
        "self.fresh(p, batch)",
        ("test_dmd2.py::test_the_first_critic_turn_takes_the_carried_sample_and_the_others_fresh_ones",),
    ),
    Mutation(
        "carried sample under another label",
        "methods/dmd2.py",
        "estimate, fake = p.critic.judge(x_t, t, cond)",
        "estimate, fake = p.critic.judge(x_t, t, batch.cond)",
        ("test_dmd2.py::test_the_carried_condition_belongs_to_the_carried_sample",),
    ),
    Mutation(
        "every critic turn on the carried sample",
        "methods/dmd2.py",
        '[Turn("critic", fresh)]',
        '[Turn("critic", first)]',
        ("test_dmd2.py::test_the_carried_condition_belongs_to_the_carried_sample",),
    ),
    Mutation(
        "exit step from the rank's own stream",
        "methods/dmd2.py",
        "(), generator=batch.shared)",
        "(), generator=batch.local)",
        (
            "test_dmd2.py::"
            "test_only_the_shared_stream_decides_the_exit_and_only_the_local_one_the_noise",
        ),
    ),
    Mutation(
        "rollouts that never stop early",
        "methods/dmd2.py",
        "[: pick(n) + 1]",
        "[: n]",
        ("test_dmd2.py::test_a_rollout_stops_where_the_shared_stream_says",),
    ),
    Mutation(
        "gradient through every step of a rollout",
        "solver.py",
        "    with torch.no_grad():\n        x = approach",
        "    with torch.enable_grad():\n        x = approach",
        ("test_dmd2.py::test_only_the_last_evaluation_has_a_gradient",),
    ),
    Mutation(
        "re-noising where the sampler does not",
        "methods/dmd2.py",
        "generator = batch.local if p.sampler.stochastic else None",
        "generator = batch.local",
        ("test_dmd2.py::test_the_student_is_trained_on_the_states_of_its_own_sampler",),
    ),
    Mutation(
        "noised data at the first time",
        "methods/dmd2.py",
        "t = times[-1].expand(len(batch.x0))",
        "t = times[0].expand(len(batch.x0))",
        ("test_dmd2.py::test_noised_data_is_what_the_student_gets_where_asked",),
    ),
    Mutation(
        "R1 by perturbing the clean image",
        "methods/dmd2.py",
        "p.critic.judge(y_t + self.r1_width * batch.noise(), t, batch.cond)",
        "p.critic.judge(y_t + p.critic.process.scales(t)[0][:, None].to(y_t)"
        " * self.r1_width * batch.noise(), t, batch.cond)",
        ("test_dmd2.py::test_r1_perturbs_the_very_tensor_the_head_saw",),
    ),
    Mutation(
        "R1 not divided by its width",
        "critic.py",
        "((there - here) / width).square()",
        "(there - here).square()",
        ("test_critic.py::test_approximate_r1_of_a_quadratic_logit",),
    ),
    Mutation(
        "hinge without its half",
        "critic.py",
        "F.relu(1 - real).mean()) / 2",
        "F.relu(1 - real).mean())",
        ("test_critic.py::test_hinge_losses_at_their_ends",),
    ),
    Mutation(
        "x0 errors weighted by 1/SNR",
        "process.py",
        "torch.exp(2 * self.log_snr(t)).clamp(max=5)",
        "torch.exp(-2 * self.log_snr(t)).clamp(max=5)",
        ("test_critic.py::test_denoising_happens_in_the_networks_own_space",),
    ),
    Mutation(
        "the weight of an error instead of its root",
        "critic.py",
        "process.loss_weight(kind, t).sqrt()",
        "process.loss_weight(kind, t)",
        ("test_critic.py::test_denoising_happens_in_the_networks_own_space",),
    ),
    Mutation(
        "passes without the critic's fresh samples",
        "methods/dmd2.py",
        "fresh = (self.ratio - 1) * (before + 1)",
        "fresh = (self.ratio - 1) * before",
        ("test_dmd2.py::test_passes_are_those_counted",),
    ),
    Mutation(
        "checkpointed blocks in the student's role, whoever calls",
        "adapters.py",
        "        with _working(at_work, role):\n            return block",
        "        with _working(at_work, ['student']):\n            return block",
        ("test_roles.py::test_gradients_are_those_of_full_copies",),
    ),
    Mutation(
        "a critic that starts at the student's last stage",
        "roles.py",
        "    if not method.needs_head:\n",
        "    if casting.start is not None:\n"
        "        load_own(denoiser.net, casting.start)\n"
        "    if not method.needs_head:\n",
        (
            "test_roles.py::"
            "test_a_next_stage_starts_from_the_averaged_student_and_a_new_critic",
        ),
    ),
    Mutation(
        "first weights from whatever was drawn before",
        "roles.py",
        "torch.default_generator.manual_seed(stream(*casting.seed, 3).initial_seed())",
        "torch.get_rng_state()",
        ("test_roles.py::test_a_seed_gives_the_same_head_and_adapters_and_another_seed_others",),
    ),
    Mutation(
        "channels normalised one by one",
        "heads.py",
        "GROUP = 8",
        "GROUP = 1",
        ("test_heads.py::test_every_number_of_the_features_matters",),
    ),
)
FIRST = MUTATIONS[:4]
