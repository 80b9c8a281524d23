"""TFDS data sets by name, `tfds:NAME[/SPLIT]`; without TensorFlow if prepared as array_record."""
