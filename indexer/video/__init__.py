"""From a file object to preprocessed clips: plan, decode, preprocess."""
