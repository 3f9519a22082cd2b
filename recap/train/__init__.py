"""The trainer core: one loop and one `TrainState` for every model that this toolkit trains.

A *task* (`recap.train.task.Task`) says what is trained and on what; the core says how it runs, survives and
resumes. It holds nothing that belongs to one task.
"""
