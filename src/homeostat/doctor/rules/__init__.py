"""All rules, in the order in which they are asked and listed: causes before what they cause.

A rule is registered by standing in this list, and nowhere else.
"""

from __future__ import annotations

from homeostat.doctor.rule import Rule
from homeostat.doctor.rules.data import (
    ConstantFeatures,
    NonFiniteData,
    UnderscaledInputs,
    UnnormalizedInputs,
    UnnormalizedTargets,
)
from homeostat.doctor.rules.data_labels import (
    ConstantTargets,
    ContradictingLabels,
    ImbalancedClasses,
    MissingClasses,
    NoisyLabels,
    NoRelation,
    UnrelatedLabels,
)
from homeostat.doctor.rules.data_splits import SharedExamples, SplitMismatch, SpoilingAugmentation, Unshuffled
from homeostat.doctor.rules.functions import MissingActivation, UnsuitedActivation
from homeostat.doctor.rules.generalization import (
    BelowBaseline,
    DropoutInEvaluation,
    Overfitting,
    StrongDecay,
    StrongDropout,
    TooFewEpochs,
    Underfitting,
)
from homeostat.doctor.rules.gradient import (
    AlwaysClipped,
    Disconnected,
    ExplodingGradient,
    Frozen,
    TurnedGradient,
    VanishingGradient,
    ZeroGradient,
)
from homeostat.doctor.rules.holdings import (
    CoupledDecay,
    MissingParameters,
    MissingZeroGrad,
    PenaltyDominates,
    StaleParameters,
)
from homeostat.doctor.rules.init import (
    BackwardFactor,
    DuplicatedWeights,
    ForwardFactor,
    LargeBias,
    OutputScale,
    WeightScale,
)
from homeostat.doctor.rules.loss import (
    BroadcastTargets,
    CoupledExamples,
    FlatLoss,
    IgnoresOutputs,
    IgnoresTargets,
    OverflowingLoss,
    WrongSign,
)
from homeostat.doctor.rules.loss_custom import UnsuitedLoss, UnsuitedOutputActivation
from homeostat.doctor.rules.loss_outputs import (
    MissingOutputActivation,
    RedundantSoftmax,
    SoftmaxWrongAxis,
    UnreachableTargets,
)
from homeostat.doctor.rules.loss_scale import ScaledLoss, SummedLoss
from homeostat.doctor.rules.norm import (
    BiasBeforeNorm,
    DecayOnNorms,
    DeepWithoutNorm,
    DropoutBeforeBatchNorm,
    NormOfOneValue,
    SmallBatchInBatchNorm,
)
from homeostat.doctor.rules.norm_statistics import BatchOfOne, EvalModeWhileTraining, StaleStatistics, TrainEvalGap
from homeostat.doctor.rules.optimizer import ExtremeMomentum, Maximizing, UnsuitedEps, UnsuitedOptimizer
from homeostat.doctor.rules.rate import LearningRateTooHigh, LearningRateTooLow, UnsuitedBatchSize
from homeostat.doctor.rules.signal import (
    ConstantOutputs,
    DeadUnits,
    ExplodingActivations,
    NonFinite,
    RankCollapse,
    SaturatedUnits,
    VanishingActivations,
)

LOSS: tuple[type[Rule], ...] = (
    IgnoresOutputs,
    IgnoresTargets,
    BroadcastTargets,
    WrongSign,
    SoftmaxWrongAxis,
    MissingOutputActivation,
    UnreachableTargets,
    RedundantSoftmax,
    UnsuitedLoss,
    UnsuitedOutputActivation,
    SummedLoss,
    ScaledLoss,
    FlatLoss,
    OverflowingLoss,
    CoupledExamples,
)
DATA: tuple[type[Rule], ...] = (
    NonFiniteData,
    UnnormalizedInputs,
    UnderscaledInputs,
    UnnormalizedTargets,
    ConstantFeatures,
    ConstantTargets,
    UnrelatedLabels,
    NoisyLabels,
    ImbalancedClasses,
    MissingClasses,
    ContradictingLabels,
    NoRelation,
    SplitMismatch,
    SharedExamples,
    Unshuffled,
    SpoilingAugmentation,
)
INIT: tuple[type[Rule], ...] = (
    DuplicatedWeights,
    ForwardFactor,
    BackwardFactor,
    WeightScale,
    OutputScale,
    LargeBias,
)
OPTIMIZER: tuple[type[Rule], ...] = (
    LearningRateTooHigh,
    LearningRateTooLow,
    Maximizing,
    UnsuitedEps,
    CoupledDecay,
    PenaltyDominates,
    StaleParameters,
    MissingParameters,
    MissingZeroGrad,
    UnsuitedOptimizer,
    ExtremeMomentum,
    UnsuitedBatchSize,
)
NORM: tuple[type[Rule], ...] = (
    BiasBeforeNorm,
    DropoutBeforeBatchNorm,
    SmallBatchInBatchNorm,
    StaleStatistics,
    TrainEvalGap,
    DecayOnNorms,
    DeepWithoutNorm,
    BatchOfOne,
    NormOfOneValue,
    EvalModeWhileTraining,
)
SIGNAL: tuple[type[Rule], ...] = (
    VanishingActivations,
    ExplodingActivations,
    DeadUnits,
    SaturatedUnits,
    ConstantOutputs,
    RankCollapse,
    NonFinite,
    MissingActivation,
    UnsuitedActivation,
)
GRADIENT: tuple[type[Rule], ...] = (
    VanishingGradient,
    ExplodingGradient,
    Disconnected,
    Frozen,
    ZeroGradient,
    AlwaysClipped,
    TurnedGradient,
)
GENERALIZATION: tuple[type[Rule], ...] = (
    Overfitting,
    Underfitting,
    TooFewEpochs,
    StrongDropout,
    StrongDecay,
    BelowBaseline,
    DropoutInEvaluation,
)

RULES: tuple[type[Rule], ...] = (*DATA, *LOSS, *INIT, *SIGNAL, *GRADIENT, *NORM, *OPTIMIZER, *GENERALIZATION)
