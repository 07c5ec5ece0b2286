"""What jsonargparse says of a mistake, boiled down to a line."""

import pytest

from lightning_plasticity.mistakes import one_line

CALLBACK = """Parser key "trainer.callbacks":
  Does not validate against any of the Union subtypes
  Subtypes: [list[Callback], <class 'lightning.pytorch.callbacks.callback.Callback'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'lightning_plasticity.callbacks.GraNet':
        Parser key "sparsity":
          Does not validate against any of the Union subtypes
          Subtypes: [<class 'float'>, collections.abc.Mapping[str, float]]
          Errors:
            - Expected a <class 'float'>
            - Expected a <class 'collections.abc.Mapping'>
          Given value type: <class 'str'>
          Given value: ninety
    - Problem with given class_path 'lightning.Callback':
        Option 'sparsity' is not accepted
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='sparsity', val='ninety')"""

RAISED = """Does not validate against any of the Union subtypes
Subtypes: [<class 'lightning.pytorch.core.datamodule.LightningDataModule'>, <class 'NoneType'>]
Errors:
  - source='nope' is neither walk, sargolini nor a file
  - Not a valid subclass of LightningDataModule
    Subclass types expect one of:
    - a class path (str)
  - Expected a <class 'NoneType'>
Given value type: <class 'jsonargparse._namespace.Namespace'>
Given value: Namespace(class_path='lightning_plasticity.data.TrackData')"""

OPTION = """Parser key "optimizer":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'torch.optim.optimizer.Optimizer'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'torch.optim.Optimizer':
        Option 'lrr' is not accepted
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='lrr', val='3')"""

CLASS = """Parser key "trainer.callbacks":

  - Expected a path but Nope either not accessible or invalid
  - Does not validate against any of the Union subtypes
  Errors:
    - Expected a dot import path string: Nope
    - Expected a <class 'NoneType'>
  Given value: Nope"""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (CALLBACK, "trainer.callbacks: GraNet: sparsity: expected float or Mapping, given 'ninety'"),
        (RAISED, "source='nope' is neither walk, sargolini nor a file"),
        (OPTION, "optimizer: Optimizer: has no option 'lrr'"),
        (CLASS, "trainer.callbacks: expected a class by name or import path, given 'Nope'"),
        (
            "Parser key \"model.rule\":\n  Expected a typing.Literal['online', 'em']. Got value: nope",
            "model.rule: expected one of 'online', 'em', given 'nope'",
        ),
        ("Parser key \"config\": File does not exist: '/x.yaml'", "config: File does not exist: '/x.yaml'"),
        ("one\n  line\n", "one line"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_messages(message, expected):
    assert one_line(message) == expected


@pytest.mark.parametrize(
    ("unknown", "similar"),
    [
        ("--data.batchsize=5", "; similar: --data.batch_size"),
        ("--model.init_args.preset=x", "; similar: --model.preset"),
        ("--lr=3", "; similar: --optimizer.lr"),
        ("--zzz", ""),
        ("stray", ""),
    ],
)
def test_the_nearest_options_are_named(unknown, similar):
    options = ["--data.batch_size", "--model.preset", "--optimizer.lr", "--seed_everything"]
    message = f"unrecognized arguments: {unknown}"
    assert one_line(message, options) == message + similar
