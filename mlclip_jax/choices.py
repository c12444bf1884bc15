"""What a flag or an argument chooses from, where the modules that know what it means are slow to import.

Nothing is imported here, so that `mlclip COMMAND --help` answers at once.
"""

CHECKPOINTS = ("latest", "best")  # of a run; the best of those that were evaluated on the way

# What an average precision is; said beside every figure, for "mAP" alone names at least four numbers.
PROTOCOLS = {
    "ap": "mAP: average precision as in scikit-learn, averaged over classes",
    "voc07": "mAP: VOC 2007's 11-point interpolated average precision, averaged over classes",
    "voc07_devkit": "mAP: the same as common code computes it, which misses recalls of just 0.3, 0.6 and 0.7",
    "voc10": "mAP: VOC 2010's all-point interpolated average precision, averaged over classes",
    "trapezoid": "mAP: area under the precision-recall curve by trapezoids, averaged over classes",
}

# Keys of `calibration.METHODS` and `calibration.RULES`.
CALIBRATIONS = ("none", "platt", "temperature", "isotonic")
THRESHOLD_RULES = ("half", "f1", "micro_f1", "precision", "recall")

ENSEMBLES = ("tai_adapter", "tai_dpt", "standardised", "mean")  # keys of `ensembling.ENSEMBLES`

STORAGE = ("float32", "bfloat16", "float16")  # dtypes of embeddings in files
SHARD_ROWS = 4096  # images in one file of embeddings, at most; what a kill loses is computed again
