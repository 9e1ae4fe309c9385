"""How the recommendation was decided, in the words of the report."""

METHOD = {
    "may be chosen": "The correctness gate and the quality verdict pass, the SLO holds at every "
    "load level asked for, and memory is within the limits. What fails is out; what is not known "
    "is neither chosen nor forgotten: it keeps a decision open unless it could not win.",
    "better, worse": "The 95 % interval excludes no difference, the difference is beyond the "
    "margin, and p after Holm's correction is below 5 %. Latency: paired by block, all pairs of a "
    "level corrected together. Quality: as the evaluation paired it. Cost: brackets of the "
    "capacity that do not overlap. Memory: bytes that differ by more than 1 %.",
    "not worse": "The interval leaves no room for a loss beyond the margin (non-inferiority).",
    "front": "A variant is off the front where one on it is decidedly not worse on every axis and "
    "better on one. An axis on which nothing is decided protects both.",
    "choice": "The variant that is decidedly not worse than every other that may be chosen, in "
    "what the goal asks for. Of several, decided differences in the other axes count; at last the "
    "least memory. Where no variant is, the evidence does not decide.",
    "balanced": "The weighted sum of natural logarithms of the ratios of latency (mean over the "
    "load levels), memory and cost; a loss of quality as large as the bar counts as a factor of 2. "
    "Within 5 % is level.",
    "cost": "Price per hour of what a replica had to itself while it was measured, over the output "
    "tokens per hour at the highest rate at which the SLO holds. Input tokens are in the price.",
}
