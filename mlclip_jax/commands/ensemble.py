"""Makes one file of scores of several methods': `mlclip ensemble --scores=A.npz,B.npz --output=X.npz`."""

from absl import flags

from mlclip_jax.choices import ENSEMBLES
from mlclip_jax.errors import InputError


def main(values: flags.FlagValues) -> None:
    """mlclip ensemble --scores=FILE,FILE[,FILE...] --output=FILE [--by=tai_adapter]"""
    from mlclip_jax.ensembling import ENSEMBLES
    from mlclip_jax.scores import Scores, known_labels, read_aligned, write_scores

    paths = [path for given in values.scores for path in given.split(",")]
    if len(paths) < 2:
        raise InputError(f"an ensemble is of two files or more; --scores={paths[0]} is one")
    known = read_aligned(paths)
    together = ENSEMBLES[values.by]([one.scores for one in known])
    origin = f"{values.by} of {', '.join(one.origin or path for one, path in zip(known, paths))}"
    first, labels = known[0], known_labels(known)
    write_scores(values.output, Scores(together, first.label_names, first.names, labels, origin))
    print(f"{values.output}: {len(together)} images, {values.by} of {len(paths)} files")


def define_flags(values: flags.FlagValues, _: list[str]) -> None:
    flags.DEFINE_multi_string(
        "scores", None, "files of scores of the same images, separated by commas", flag_values=values
    )
    flags.DEFINE_string("output", None, "file of scores to write, .npz", flag_values=values)
    flags.DEFINE_enum(
        "by",
        "tai_adapter",
        ENSEMBLES,
        "tai_adapter: mean of the first's probabilities and the others scaled to [0, 1]; tai_dpt: both "
        "scaled, the second weighing 0.9; standardised: mean of what is standardised image by image; mean: "
        "of the scores as they come, for seeds of one method",
        flag_values=values,
    )
    flags.mark_flags_as_required(["scores", "output"], values)
