"""The tab "Hessian" of TensorBoard, and the same charts as a page to hand on.

``records`` is what is written at each measurement, ``series`` how a run is put together from that,
``provider`` and ``scalars`` read event files, ``plugin`` answers TensorBoard, ``page`` writes the
report; ``static`` holds what runs in the browser. Nothing here imports torch or Lightning:
TensorBoard loads it.
"""
