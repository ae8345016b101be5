"""A dataset -> Parquet shards of masks, resumable, on Ray. Must not know how one image becomes masks: ``labeler`` does."""
