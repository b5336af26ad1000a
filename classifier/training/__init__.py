"""From a data set to a checkpoint. To follow `classifier train`, read these in order:

1. `classifier.train_command` reads the command line, `classifier.commands` the settings, and it begins.
2. `train` has the whole run on one page.
3. `run` has the epochs: steps, validation, the best one kept.
4. `final_validation` measures the best model as it will be used.
5. `classifier.model.checkpoint` writes weights and card into one file.

The names of the other modules say what they do: `recipes` (all that is chosen), `options`, `decoded_set`,
`batches`, `weights`, `augment`, `feed`, `optim`, `distributed`, `calibrate`, `card`, `run_folder`,
`run_page`, `pooled` (of several folds), `recalibrate` (for another place), `logs` (of other tools), `ages`,
`naming`.
"""
