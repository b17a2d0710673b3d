"""`diffit explain`: robust predictions and faithful explanations of image classifiers."""

from diffit.commands.explain.demo import Demo, run_demo
from diffit.commands.explain.evaluate import Evaluate, run_evaluate
from diffit.commands.explain.labels import Certify, Predict, run_certify, run_predict
from diffit.commands.explain.maps import Map, Region, run_map, run_region
from diffit.commands.explain.plot import Plot, run_plot
from diffit.commands.explain.train import TrainClassifier, run_train_classifier

VERBS = {
    "demo": (Demo, run_demo),
    "train-classifier": (TrainClassifier, run_train_classifier),
    "predict": (Predict, run_predict),
    "certify": (Certify, run_certify),
    "map": (Map, run_map),
    "region": (Region, run_region),
    "evaluate": (Evaluate, run_evaluate),
    "plot": (Plot, run_plot),
}
