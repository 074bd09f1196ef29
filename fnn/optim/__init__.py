"""Optimizers: pure transforms of gradients, in the protocol that the JAX ecosystem speaks.

Numbers may be arrays or tracers, and a learning rate may be a schedule, a function of the count of
updates made so far. Builders raise OptionError for a number out of range; an `update` that reads
params raises ParamsError without them.
"""

from fnn.optim import constraints, schedules
from fnn.optim.adam import (
    adam,
    adamax,
    adamaxw,
    adamw,
    amsgrad,
    scale_by_adam,
    scale_by_adamax,
    scale_by_amsgrad,
)
from fnn.optim.adam_nesterov import adan, nadam, nadamw, scale_by_adan, scale_by_nadam
from fnn.optim.adam_second_moment import (
    adabelief,
    radam,
    scale_by_belief,
    scale_by_radam,
    scale_by_yogi,
    yogi,
)
from fnn.optim.as_vector import as_vector
from fnn.optim.averaging import average_params, averaged_params, ema, lookahead
from fnn.optim.clip import (
    adaptive_grad_clip,
    add_noise,
    centralize,
    clip,
    clip_by_block_rms,
    clip_by_global_norm,
    global_norm,
    zero_nans,
)
from fnn.optim.constraints import project
from fnn.optim.decay import add_decayed_weights
from fnn.optim.factored import (
    adafactor,
    scale_by_factored_rms,
    scale_by_param_block_rms,
    scale_by_sm3,
    sm3,
)
from fnn.optim.gradients import accumulate, per_example_clip, sam
from fnn.optim.layerwise import layerwise_decay
from fnn.optim.lbfgs import lbfgs, scale_by_lbfgs, scale_by_wolfe_linesearch
from fnn.optim.loss_scaling import LossScale, adjust_loss_scale, loss_scale, scale_loss
from fnn.optim.masking import masked, of_kind, partition, set_to_zero
from fnn.optim.muon import muon, orthogonalize, scale_by_muon, scale_by_shape
from fnn.optim.optimistic import (
    optimistic_adam,
    optimistic_gradient_descent,
    scale_by_optimistic_gradient,
)
from fnn.optim.plateau import reduce_on_plateau
from fnn.optim.polyak import polyak_sgd, scale_by_polyak
from fnn.optim.prodigy import prodigy, scale_by_prodigy
from fnn.optim.rms import (
    adadelta,
    adagrad,
    rmsprop,
    scale_by_adadelta,
    scale_by_rms,
    scale_by_rss,
    scale_by_stddev,
)
from fnn.optim.safety import (
    all_finite,
    master_weights,
    skip_nonfinite,
    stochastic_rounding,
    unless_skipped,
)
from fnn.optim.scale import scale
from fnn.optim.schedule_free import (
    schedule_free,
    schedule_free_adamw,
    schedule_free_eval_params,
    schedule_free_sgd,
)
from fnn.optim.sgd import noisy_sgd, sgd, trace
from fnn.optim.sign import (
    lion,
    rprop,
    scale_by_lion,
    scale_by_rprop,
    scale_by_sign,
    sign_sgd,
    signum,
)
from fnn.optim.soap import scale_by_shampoo, scale_by_soap, shampoo, soap
from fnn.optim.sophia import scale_by_sophia, sophia
from fnn.optim.stacked import each_member, stacked
from fnn.optim.transform import (
    Transform,
    apply_updates,
    chain,
    leafwise,
    named_chain,
    scale_by_learning_rate,
    stateless,
)
from fnn.optim.trust import (
    fromage,
    lamb,
    lars,
    novograd,
    scale_by_novograd,
    scale_by_trust_ratio,
)
from fnn.optim.tunable import tunable

__all__ = [
    "LossScale", "Transform", "accumulate", "adabelief", "adadelta", "adafactor", "adagrad",
    "adam", "adamax", "adamaxw", "adamw", "adan", "adaptive_grad_clip", "add_decayed_weights",
    "add_noise", "adjust_loss_scale", "all_finite", "amsgrad", "apply_updates", "as_vector",
    "average_params", "averaged_params", "centralize", "chain", "clip", "clip_by_block_rms",
    "clip_by_global_norm", "constraints", "each_member", "ema", "fromage", "global_norm",
    "lamb", "lars", "layerwise_decay", "lbfgs", "leafwise", "lion", "lookahead", "loss_scale",
    "masked", "master_weights", "muon", "nadam", "nadamw", "named_chain", "noisy_sgd",
    "novograd", "of_kind", "optimistic_adam", "optimistic_gradient_descent", "orthogonalize",
    "partition", "per_example_clip", "polyak_sgd", "prodigy", "project", "radam",
    "reduce_on_plateau", "rmsprop", "rprop", "sam", "scale", "scale_by_adadelta",
    "scale_by_adam", "scale_by_adamax", "scale_by_adan", "scale_by_amsgrad", "scale_by_belief",
    "scale_by_factored_rms", "scale_by_lbfgs", "scale_by_learning_rate", "scale_by_lion",
    "scale_by_muon", "scale_by_nadam", "scale_by_novograd", "scale_by_optimistic_gradient",
    "scale_by_param_block_rms", "scale_by_polyak", "scale_by_prodigy", "scale_by_radam",
    "scale_by_rms", "scale_by_rprop", "scale_by_rss", "scale_by_shampoo", "scale_by_shape",
    "scale_by_sign", "scale_by_sm3", "scale_by_soap", "scale_by_sophia", "scale_by_stddev",
    "scale_by_trust_ratio", "scale_by_wolfe_linesearch", "scale_by_yogi", "scale_loss",
    "schedule_free", "schedule_free_adamw", "schedule_free_eval_params", "schedule_free_sgd",
    "schedules", "set_to_zero", "sgd", "shampoo", "sign_sgd", "signum", "skip_nonfinite", "sm3",
    "soap", "sophia", "stacked", "stateless", "stochastic_rounding", "trace", "tunable",
    "unless_skipped", "yogi", "zero_nans",
]  # fmt: skip
