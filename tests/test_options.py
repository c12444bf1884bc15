"""The grammar that recipes and datasets share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlclip_jax import InputError
from mlclip_jax.options import nearest, read_options, split_options

KEYS = st.from_regex(r"[a-z]\w{0,5}", fullmatch=True)
# Of what may stand behind `=`: commas too, where no `key=` follows.
VALUES = st.text(st.sampled_from("ab/. -:1,"), max_size=8)
KNOWN = {"split": "train", "shots": 4, "rate": 0.5, "drop": False, "path": None}


@given(st.text(st.sampled_from("ab/. -:1,"), max_size=8), st.dictionaries(KEYS, VALUES, max_size=4))
def test_what_is_joined_comes_apart(first, options):
    given_options = [f"{key}={value}" for key, value in options.items()]
    assert split_options(",".join([first, *given_options])) == (first, given_options)


@pytest.mark.parametrize(
    ("given_option", "value"),
    [
        ("split=val,2", "val,2"),
        ("split=", ""),
        ("shots=-3", -3),
        ("rate=1e-2", 0.01),
        ("drop=yes", True),
        ("drop=False", False),
        ("path=a=b", "a=b"),
    ],
)
def test_a_value_has_the_type_of_its_default(given_option, value):
    name = given_option.partition("=")[0]
    options = read_options("x", [given_option], KNOWN)
    assert options == {name: value}
    assert type(options[name]) is type(value)


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        (
            ["shot=1"],
            r"^x has no option 'shot' \(did you mean shots\?\); its options, and defaults: split=tr",
        ),
        (["zzz=1"], r"^x has no option 'zzz'; its options, and defaults: .*drop=False, path$"),
        (["shots=1.5"], "^x takes a whole number as shots, not '1.5'$"),
        (["rate=fast"], "^x takes a number as rate, not 'fast'$"),
        (["drop=perhaps"], "^x takes yes or no as drop, not 'perhaps'$"),
        (["shots=1", "shots=2"], "^x is given shots= twice, as 1 and '2'; give one$"),
    ],
)
def test_what_is_no_option_is_refused(given_options, message):
    with pytest.raises(InputError, match=message):
        read_options("x", given_options, KNOWN)


def test_only_a_near_name_is_proposed():
    assert nearest("trian", ["train", "test"]) == " (did you mean train?)"
    assert nearest("moon", ["train", "test"]) == ""


def test_a_comma_in_a_path_may_be_kept_together():
    assert split_options(r"a\,b=c.csv,split=x") == ("a,b=c.csv", ["split=x"])
    assert split_options("a,b.csv,split=x,y") == ("a,b.csv", ["split=x,y"])
