"""The metric dictionary as data: what every column of steps.jsonl means, and what others call it.

Notation: row i, token t, response mask m, L_i tokens, N = sum L_i, d = logp - old_logp, r = e^d,
s_i = e^(mean_t d), A advantage, e = old_logp - behaviour_logp. Log-probs are at the sampling temperature.
Aggregation: `tok` = mean over tokens, `seq` = mean over rows, `grp` = mean over groups of siblings.
"""

from __future__ import annotations

from harness.core.metric import Metric

_ON_POLICY = "one update per rollout batch: the weights are the old policy's, so the ratio is 1 by construction"
_NO_CLIP = "the surrogate does not clip; or " + _ON_POLICY
_DENSE = "dense model"
_TOLD = "dense model, or a sampler that does not tell its routes"
_REF = "no reference pass in this step"
_CRITIC = "the algorithm has no critic"
_NO_UPDATE = "no row of the batch has an advantage, so no optimizer step was taken"
_LONG = "no response has 16 tokens"
_NOT_MEASURED = "not measured by this backend"

QUANTILES: dict[str, float] = {"q001": 0.001, "q01": 0.01, "q99": 0.99, "q999": 0.999}

REWARD = (
    Metric(
        key="reward/mean", formula="mean_i R_i, task reward before shaping, all sampled rows", unit="reward",
        aggregation="seq", when="rollout", trl="reward", verl="critic/score/mean", openrlhf="reward",
        prime_rl="reward/mean", doc="Includes rows that admission refused; shaping and KL in reward never enter.",
    ),
    Metric(
        key="reward/std", formula="SD_i R_i over the batch (ddof 0)", unit="reward", aggregation="seq", when="rollout",
        trl="reward_std",
    ),
    Metric(
        key="reward/shaped_mean", formula="mean_i R'_i after the rewards slot, batch rows", unit="reward",
        aggregation="seq", when="rollout", verl="critic/rewards/mean", openrlhf="return",
        doc="verl's key is also after KL in reward.",
    ),
    Metric(
        key="reward/group_std", formula="mean_g SD_g R (ddof 1), before filtering", unit="reward", aggregation="grp",
        when="rollout", not_applicable="groups of one response have no spread", doc="The denominator GRPO divides by.",
    ),
    Metric(
        key="signal/zero_var_frac", formula="#{g: max R - min R < 1e-8} / #g, before filtering", unit="fraction",
        aggregation="grp", when="rollout", not_applicable="groups of one response have no spread",
        trl="frac_reward_zero_std", openrlhf="1 - dynamic_filtering_pass_rate", doc="Dead signal.",
    ),
    Metric(
        key="signal/zero_var_frac_all0", formula="share of groups with no spread and no correct response",
        unit="fraction", aggregation="grp", when="rollout", not_applicable="groups of one response have no spread",
        doc="Stuck: the prompts are too hard.",
    ),
    Metric(
        key="signal/zero_var_frac_all1", formula="share of groups with no spread and only correct responses",
        unit="fraction", aggregation="grp", when="rollout", not_applicable="groups of one response have no spread",
        doc="Solved: the prompts are too easy; never a collapse.",
    ),
    Metric(
        key="signal/effective_groups", formula="#{g: any A != 0}", unit="groups", aggregation="count", when="rollout",
    ),
    Metric(
        key="signal/effective_rows_frac", formula="#{i: any A_it != 0} / sampled rows", unit="fraction",
        aggregation="seq", when="rollout", doc="What selection and dead groups leave of the sampled budget.",
    ),
    Metric(
        key="signal/oversample_factor", formula="sampled groups / groups in the batch", unit="x", aggregation="grp",
        when="rollout", doc="What dynamic sampling pays.",
    ),
    Metric(
        key="signal/refill_rounds", formula="generation batches of this step", unit="count", aggregation="count",
        when="rollout",
    ),
    Metric(
        key="signal/refill_exhausted", formula="1 where the refill cap was hit before the batch was full", unit="0/1",
        aggregation="flag", when="rollout",
    ),
)  # fmt: skip

ENTROPY = (
    Metric(
        key="entropy/exact", formula="mean_it -sum_v p_v log p_v", unit="nats/token", aggregation="tok", when="rollout",
        not_applicable="the sampler reports no exact entropy", trl="entropy", verl="actor/entropy",
        openrlhf="entropy_loss", prime_rl="entropy/all/mean", doc="At the sampling temperature, all sampled rows.",
    ),
    Metric(
        key="entropy/exact_seq", formula="mean_i mean_t H_it", unit="nats/token", aggregation="seq", when="rollout",
        not_applicable="the sampler reports no exact entropy",
        doc="Parts from the token mean as soon as length correlates with entropy.",
    ),
    Metric(
        key="entropy/p10", formula="10 % quantile of H_it", unit="nats", aggregation="tok", when="rollout",
        not_applicable="the sampler reports no exact entropy",
    ),
    Metric(
        key="entropy/p90", formula="90 % quantile of H_it", unit="nats", aggregation="tok", when="rollout",
        not_applicable="the sampler reports no exact entropy",
    ),
    Metric(
        key="entropy/sampled", formula="mean_it -behaviour_logp_it", unit="nats/token", aggregation="tok",
        when="rollout", doc="Unbiased without truncated sampling; a cross-check of the exact one.",
    ),
)  # fmt: skip

KL_REF = tuple(
    Metric(
        key=f"kl_ref/{key}", formula=formula, unit=unit, aggregation=agg, when="rollout", not_applicable=_REF,
        trl=trl, verl=verl, openrlhf=openrlhf, prime_rl=prime, doc=doc,
    )
    for key, formula, unit, agg, trl, verl, openrlhf, prime, doc in (
        ("k1", "mean_it old_logp - ref_logp", "nats/token", "tok", None, "actor/kl_loss", "kl", "ref_kl/*",
         "Unbiased, signed, noisy. Samples and log-probs are both of the old policy."),
        ("k3", "mean_it e^u - 1 - u, u = ref_logp - old_logp", "nats/token", "tok", "kl", "actor/kl_loss", None, None,
         "Not negative, low variance, heavy upper tail. verl clamps it."),
        ("k1_seq", "mean_i sum_t old_logp - ref_logp", "nats", "seq", None, None, None, None, ""),
        ("k3_seq", "mean_i sum_t e^u - 1 - u", "nats", "seq", None, None, None, None, ""),
    )
)  # fmt: skip

LENGTH = (
    Metric(
        key="len/mean", formula="mean_i L_i", unit="tokens", aggregation="seq", when="rollout",
        trl="completions/mean_length", verl="response_length/mean", openrlhf="response_length",
        doc="Response tokens, end token included, all sampled rows.",
    ),
    Metric(key="len/p50", formula="median L_i", unit="tokens", aggregation="seq", when="rollout"),
    Metric(key="len/p95", formula="95 % quantile of L_i", unit="tokens", aggregation="seq", when="rollout"),
    Metric(
        key="len/max", formula="max L_i", unit="tokens", aggregation="max", when="rollout",
        trl="completions/max_length", verl="response_length/max",
    ),
    Metric(
        key="len/correct_mean", formula="mean L_i over correct rows", unit="tokens", aggregation="seq", when="rollout",
        not_applicable="no row is correct", doc="Separates inflation from difficulty.",
    ),
    Metric(
        key="len/incorrect_mean", formula="mean L_i over incorrect rows", unit="tokens", aggregation="seq",
        when="rollout", not_applicable="every row is correct",
    ),
    Metric(
        key="len/trunc_rate", formula="share of rows cut at the limit without an end token", unit="fraction",
        aggregation="seq", when="rollout", trl="completions/clipped_ratio", verl="response_length/clip_ratio",
        openrlhf="truncated", doc="verl also counts an end token at the limit.",
    ),
)  # fmt: skip

TEXT = (
    Metric(
        key="text/rep_rate", formula="share of rows with rep-4 > 0.5, or 8 repeats of a suffix of p <= 32 tokens",
        unit="fraction", aggregation="seq", when="rollout", not_applicable=_LONG, doc="Rows of 16 tokens and more.",
    ),
    Metric(
        key="text/rep4_mean", formula="mean_i 1 - #unique 4-grams / #4-grams", unit="fraction", aggregation="seq",
        when="rollout", not_applicable=_LONG,
    ),
    Metric(
        key="text/confident_run_max", formula="longest run of tokens with behaviour probability > 0.99", unit="tokens",
        aggregation="max", when="rollout",
    ),
    Metric(
        key="text/distinct_in_group", formula="mean_g #unique responses / G", unit="fraction", aggregation="grp",
        when="rollout", doc="Mode collapse, seen before the reward drops.",
    ),
    Metric(
        key="text/nonvalid_rate", formula="share of rows from which no answer could be read", unit="fraction",
        aggregation="seq", when="rollout", doc="Separates wrong from broken.",
    ),
    Metric(
        key="reward/failed_rate", formula="share of rows whose grading failed: exception, time limit, unreadable gold",
        unit="fraction", aggregation="seq", when="rollout", doc="A failed grading is no verdict on the response.",
    ),
)  # fmt: skip

ADVANTAGE = tuple(
    Metric(
        key=f"adv/{key}", formula=formula, unit=unit, aggregation="tok", when="rollout",
        verl=f"critic/advantages/{verl}" if verl else None,
    )
    for key, formula, unit, verl in (
        ("mean", "mean_it A_it", "1", "mean"),
        ("std", "SD_it A_it (ddof 0)", "1", None),
        ("abs_max", "max_it |A_it|", "1", "max"),
        ("pos_frac", "share of tokens with A_it > 0", "fraction", None),
    )
)  # fmt: skip

VALUE = (
    Metric(
        key="value/explained_var", formula="1 - Var(R - V) / (Var(R) + 1e-8) over tokens, R the returns", unit="1",
        aggregation="tok", when="rollout", not_applicable=_CRITIC, verl="critic/vf_explained_var",
        doc="At most 1; below 0 the critic is worse than a constant.",
    ),
    Metric(
        key="value/loss", formula="value loss of the critic's step", unit="1", aggregation="tok", when="update",
        not_applicable=_CRITIC, verl="critic/vf_loss", openrlhf="critic_loss",
    ),
    Metric(
        key="value/clip_frac", formula="share of tokens whose value clip is active", unit="fraction",
        aggregation="tok", when="update", not_applicable=_CRITIC, verl="critic/vf_clipfrac",
    ),
)  # fmt: skip


def _spread(prefix: str, symbol: str, what: str) -> tuple[Metric, ...]:
    """Mean, extremes and tail quantiles of one kind of ratio."""
    parts = {"mean": f"mean of {symbol}", "max": f"max {symbol}", "min": f"min {symbol}"}
    parts |= {name: f"{100 * q:g} % quantile of {symbol}" for name, q in QUANTILES.items()}
    return tuple(
        Metric(key=f"ratio/{prefix}_{name}", formula=formula, unit="1", aggregation=prefix[:3], when="update",
               not_applicable=_ON_POLICY, doc=what)
        for name, formula in parts.items()
    )  # fmt: skip


RATIO = (
    *_spread("tok", "r_it", "E_old r = 1, so a mean off by 0.05 is a bug or extreme drift. Same for every algorithm."),
    *_spread("seq_geo", "s_i", "The geometric sequence ratio, for every algorithm, so that GRPO and GSPO compare."),
    Metric(
        key="ratio/seq_full_logsd", formula="SD_i sum_t d_it (ddof 0)", unit="nats", aggregation="seq", when="update",
        not_applicable=_ON_POLICY,
    ),
    *(
        Metric(
            key=f"ratio/{key}", formula=f"(sum w)^2 / (n sum w^2), w = {w}", unit="(0, 1]", aggregation=agg,
            when="update", not_applicable=_ON_POLICY, verl=verl, doc="Unclamped, computed in log space.",
        )
        for key, w, agg, verl in (
            ("ess_tok", "r_it", "tok", "rollout_corr/rollout_is_eff_sample_size"),
            ("ess_seq", "s_i", "seq", None),
            ("ess_seq_full", "e^(sum_t d_it)", "seq", None),
        )
    ),
)  # fmt: skip

KL_OLD = (
    Metric(
        key="kl_old/k1", formula="mean_it -d_it", unit="nats/token", aggregation="tok", when="update",
        not_applicable=_ON_POLICY, verl="actor/ppo_kl", openrlhf="ppo_kl", doc="Estimates KL(old || new).",
    ),
    Metric(
        key="kl_old/k3", formula="mean_it e^d - 1 - d", unit="nats/token", aggregation="tok", when="update",
        not_applicable=_ON_POLICY,
    ),
)  # fmt: skip

CLIP = tuple(
    Metric(
        key=f"clip/{key}", formula=formula, unit="fraction", aggregation=agg, when="update", not_applicable=_NO_CLIP,
        trl=trl, verl=verl, openrlhf=openrlhf, prime_rl=prime, doc=doc,
    )
    for key, formula, agg, trl, verl, openrlhf, prime, doc in (
        ("tok_low", "share of tokens below the range with A < 0", "tok", "clip_ratio/low_mean", None, None,
         "is_masked_low", "TRL counts sequences where the ratio is per sequence."),
        ("tok_high", "share of tokens above the range with A > 0", "tok", "clip_ratio/high_mean", None, None,
         "is_masked_high", ""),
        ("tok_any", "share of tokens with an active clip", "tok", "clip_ratio/region_mean", "actor/pg_clipfrac",
         "ppo_clip_ratio", "is_masked", "A clipped sequence counts its L_i tokens."),
        ("seq_low", "share of rows with a token clipped low", "seq", None, None, None, None, ""),
        ("seq_high", "share of rows with a token clipped high", "seq", None, None, None, None, ""),
        ("seq_any", "share of rows with a clipped token", "seq", None, None, None, None, ""),
        ("outside_range", "share of tokens outside the range, whatever the sign of A", "tok", None, None, None, None,
         "Drift, independent of the reward's sign."),
    )
)  # fmt: skip

UPDATE = (
    Metric(
        key="loss/total", formula="policy loss + weighted penalties of one optimizer step", unit="1",
        aggregation="as the algorithm aggregates", when="update", not_applicable=_NO_UPDATE, trl="loss",
        verl="actor/pg_loss", openrlhf="policy_loss", doc="Not comparable between algorithms.",
    ),
    Metric(
        key="grad/norm_pre", formula="||g||_2 of the policy before clipping", unit="L2", aggregation="global",
        when="update", not_applicable=_NO_UPDATE, trl="grad_norm", verl="actor/grad_norm", openrlhf="actor_grad_norm",
        prime_rl="optim/grad_norm", doc="The norm after clipping hides explosions.",
    ),
    Metric(
        key="grad/norm_critic", formula="||g||_2 of the critic before clipping", unit="L2", aggregation="global",
        when="update", not_applicable=_CRITIC, verl="critic/grad_norm", openrlhf="critic_grad_norm",
    ),
    Metric(
        key="grad/clipped_frac", formula="share of the step's updates whose gradient was clipped", unit="fraction",
        aggregation="updates", when="rollout", not_applicable=_NO_UPDATE,
    ),
    Metric(
        key="grad/noise_scale", formula="tr(S) / ||g||^2, tr(S) = (E||g_b||^2 - ||g_B||^2) / (1/b - 1/B)",
        unit="prompt groups", aggregation="global", when="rollout", not_applicable="separate probe",
    ),
    Metric(
        key="update/param_norm", formula="||theta' - theta||_2 over the step's updates", unit="L2",
        aggregation="global", when="rollout", not_applicable=_NOT_MEASURED, doc="Detects silent no-op updates.",
    ),
    Metric(
        key="update/rel", formula="||theta' - theta||_2 / ||theta||_2", unit="1", aggregation="global",
        when="rollout", not_applicable=_NOT_MEASURED,
    ),
    Metric(
        key="update/bf16_unchanged", formula="share of weights whose bfloat16 value did not change", unit="fraction",
        aggregation="global", when="rollout", not_applicable=_NOT_MEASURED,
        doc="Near 1: the step is lost where weights are kept in bfloat16.",
    ),
)  # fmt: skip

MISMATCH = tuple(
    Metric(
        key=f"mismatch/{key}", formula=formula, unit=unit, aggregation=agg, when="rollout",
        not_applicable="neither an old-log-prob pass nor an update", trl=trl, verl=verl, openrlhf=openrlhf,
        prime_rl=prime, doc=doc,
    )
    for key, formula, unit, agg, trl, verl, openrlhf, prime, doc in (
        ("abs_dlogp_mean", "mean_it |e_it|", "nats", "tok", "sampling/sampling_logp_difference/mean",
         "training/rollout_probs_diff_mean", None, None, "0 up to rounding where the policy itself samples."),
        ("abs_dlogp_max", "max_it |e_it|", "nats", "max", "sampling/sampling_logp_difference/max",
         "training/rollout_probs_diff_max", None, None, ""),
        ("k3", "mean_it e^e - 1 - e", "nats/token", "tok", None, "rollout_corr/k3_kl", "vllm_kl",
         "mismatch_kl/all/mean", "Estimates KL(behaviour || old)."),
        ("chi2_tok", "mean_it e^(2e) - 1", "1", "tok", None, "rollout_corr/chi2_token", None, None, ""),
        ("pearson_p", "corr(e^old_logp, e^behaviour_logp)", "[-1, 1]", "tok", None,
         "training/rollout_actor_probs_pearson_corr", None, None, ""),
        ("n", "tokens compared", "tokens", "count", None, None, None, None,
         "From the old-log-prob pass over all rows, or else from the updates' contributing rows; rows carried over "
         "from an earlier step are left out."),
    )
) + tuple(
    Metric(
        key=f"mismatch/injected_{key}", formula=f"{formula} d_it, d = noise put into old_logp", unit="nats",
        aggregation="tok", when="rollout", not_applicable="no noise is put into what the ratio divides by",
        doc="Of logp_noise; no other mismatch metric holds it.",
    )
    for key, formula in (("mean", "mean_it"), ("sd", "SD over it of"))
)  # fmt: skip

MOE_CHANGES = tuple(
    Metric(key=f"moe/{key}", formula=formula, unit="fraction", aggregation=agg, when="update", doc=doc,
           not_applicable="dense model, or one update per rollout batch: its routes are the old policy's")
    for key, formula, agg, doc in (
        ("selections_changed", "choices of the new policy that are not among the old one's, on the batch",
         "mean over layers and tokens",
         "What the new policy would choose by itself, also where a replay overrules it."),
        ("tokens_changed", "tokens with any such choice in any layer", "tok",
         "Grows with depth and k; never compare it with selections_changed."),
    )
)  # fmt: skip

MOE = tuple(
    Metric(key=f"moe/{key}", formula=formula, unit=unit, aggregation=agg, when="rollout", not_applicable=na,
           prime_rl=prime, doc=doc)
    for key, formula, unit, agg, na, prime, doc in (
        ("expert_change", "1 - |E_new & E_old| / k on fixed probe tokens, around one optimizer step", "fraction",
         "mean over layers and tokens", _DENSE, None, "The tokens are responses of the initial policy."),
        ("expert_change_total", "the same before this step, against the initial policy", "fraction",
         "mean over layers and tokens", _DENSE, None, ""),
        ("sampler_selections", "choices of the trainer that are not among the sampler's, same weights", "fraction",
         "mean over layers and tokens", _TOLD, None, "0 but for ties where both are one model in float32."),
        ("sampler_tokens", "tokens with any such choice in any layer", "fraction", "tok", _TOLD, None, ""),
        ("gap_tokens", "tokens with |e| > 1e-3 nats though engine and trainer compute in float32", "tokens", "count",
         _DENSE + ", or a lower precision", None, "routing.jsonl lists them with the routers' margins."),
        ("replay_bytes", "tokens x layers x k x size of an index, of the step's routes", "bytes", "sum", _DENSE, None,
         "0 where nothing is replayed."),
        ("max_vio", "(max load - balanced) / balanced", "x", "worst layer", _DENSE, "max_vio/mean", ""),
        ("load_cv", "SD / mean of expert loads", "1", "worst layer", _DENSE, None, ""),
        ("dead_experts", "share of experts below 1 % of a fair share", "fraction", "worst layer", _DENSE, None, ""),
        ("route_entropy", "H / log E of expert loads", "[0, 1]", "worst layer", _DENSE, None, ""),
    )
)  # fmt: skip

PERF = tuple(
    Metric(key=f"perf/{key}", formula=formula, unit=unit, aggregation="step", when="wallclock",
           not_applicable=_NOT_MEASURED, trl=trl, verl=verl, openrlhf=openrlhf, prime_rl=prime, doc=doc)
    for key, formula, unit, trl, verl, openrlhf, prime, doc in (
        ("tok_per_s_gen", "sampled tokens / t_gen", "tok/s", None, None, None, None, ""),
        ("tok_per_s_train", "trained tokens / t_update", "tok/s", None, None, None, None, ""),
        ("tok_per_s_e2e", "sampled tokens / step time", "tok/s", None, "perf/throughput", None, "perf/throughput", ""),
        ("t_gen", "seconds of generation", "s", None, "timing_s/gen", "timing/generation", None, ""),
        ("t_reward", "seconds of grading", "s", None, "timing_s/reward", None, None, ""),
        ("t_logp", "seconds of old and reference passes", "s", None, "timing_s/old_log_prob", None, None, ""),
        ("t_update", "seconds of optimizer steps", "s", None, "timing_s/update_actor", None, None, ""),
        ("t_eval", "seconds of held-out evaluation", "s", None, "timing_s/testing", None, None, ""),
        ("t_step", "seconds of the whole step", "s", "step_time", "timing_s/step", "timing/total", None, ""),
        ("mem_peak", "peak memory of device, or of the process on CPU", "GiB", None, "perf/max_memory_allocated_gb",
         None, "perf/peak_memory", "On CPU this is resident memory and an upper bound."),
        ("mem_policy", "bytes of the policy's weights", "GiB", None, None, None, None, "Analytic."),
        ("mem_critic", "bytes of the critic's weights", "GiB", None, None, None, None, "Analytic."),
        ("mem_ref", "bytes of the reference's weights", "GiB", None, None, None, None, "Analytic."),
        ("mem_optimizer", "bytes of optimizer state", "GiB", None, None, None, None, "Analytic."),
        ("mem_kv", "bytes of the key/value cache", "GiB", None, None, None, None, "Analytic."),
        ("mem_activations", "bytes of saved activations", "GiB", None, None, None, None, "Analytic."),
    )
)  # fmt: skip

BUDGET = tuple(
    Metric(key=f"budget/{key}", formula=formula, unit=unit, aggregation="sum", when="counter", not_applicable=na,
           trl=trl, verl=verl)
    for key, formula, unit, na, trl, verl in (
        ("sampled_tokens", "response tokens generated in this step, discarded ones included", "tokens", "", None, None),
        ("grad_tokens", "tokens of contributing rows in the step's backward passes", "tokens", "", "num_tokens",
         "perf/total_num_tokens"),
        ("fwd_flops", "2 P per token and forward pass, this step (MoE: active P)", "FLOP", _NOT_MEASURED, None,
         None),
        ("bwd_flops", "4 P per token and backward pass, this step", "FLOP", _NOT_MEASURED, None, None),
        ("optimizer_steps", "optimizer steps of this step, skipped ones left out", "count", "", None, None),
        ("prompts", "groups sampled in this step", "count", "", None, None),
        ("carried_prompts", "groups of the batch that an earlier step sampled, whose tokens that step counted", "count",
         "admission drops what it does not need", None, None),
    )
)  # fmt: skip

HEALTH = tuple(
    Metric(key=f"health/{key}", formula=formula, unit="count", aggregation="sum", when="counter", not_applicable=na,
           prime_rl=prime)
    for key, formula, na, prime in (
        ("nonfinite_loss", "updates whose loss is not finite", "", "loss/nan_count"),
        ("nonfinite_grad", "updates whose gradient norm is not finite", "", None),
        ("nonfinite_logits", "response tokens with a log-prob that is not finite", "", None),
        ("nonfinite_reward", "rows whose reward is not finite", "", None),
        ("skipped_updates", "optimizer steps that were skipped for any of these", "", None),
        ("skipped_critic_updates", "the critic's optimizer steps that were skipped: loss or gradient is not finite",
         _CRITIC, None),
    )
)  # fmt: skip

METRICS: tuple[Metric, ...] = (
    *REWARD, *ENTROPY, *KL_REF, *LENGTH, *TEXT, *ADVANTAGE, *VALUE, *RATIO, *KL_OLD, *CLIP, *UPDATE, *MISMATCH,
    *MOE_CHANGES, *MOE, *PERF, *BUDGET, *HEALTH,
)  # fmt: skip
