"""What the walk over the fields of a config is told: recipes, other values, and exceptions."""

# The first that shows an effect decides, so the cheap ones come first.
PLACES = (
  'nanogpt_char.py',
  'gpt2.py:mini',
  'bert.py:mini',
  't5.py:mini',
  't5.py:v1_1_mini',
  'modernbert.py:mini',
  'xlnet.py:mini',
  'classify.py:encoder',
  'classify.py:decoder',
  'classify.py:encoder_decoder',
  'classify.py:text_to_text',
  'text_to_text.py:decoder',
  'text_to_text.py:encoder_decoder',
  'mixture.py',
  'glue.py:mrpc',
  'regress.py:encoder',
  'regress.py:decoder',
  'regress.py:encoder_decoder',
  'multi_label.py:encoder',
  'multi_label.py:decoder',
  'multi_label.py:encoder_decoder',
  'tag.py:encoder',
  'tag.py:decoder',
  'squad.py:encoder',
  'multiple_choice.py:encoder',
  'multiple_choice.py:decoder',
  'translate.py:encoder_decoder',
  'summarize.py:encoder_decoder',
)
# One layer shows as much as two, in half the time; the schedule's shape shows after the warm-up.
SMALL = (('model.num_layers', '1'), ('optimizer.warmup_steps', '1'))

# Values of texts and patterns, which no rule tells, and of fields whose neighbouring value would
# not show at this size. {} is the folder of the corpora.
VALUES = {
  'model.num_decoder_layers': ['2'],
  'model.attention_bias': ['False', 'True'],
  'model.mlp_bias': ['False'],
  'model.norm_eps': ['0.01'],
  'optimizer.decay_share': ['1.0'],
  'model.token_types': ['0', '2'],
  'model.relative_buckets': ['16'],
  'model.relative_max_distance': ['16'],
  'model.window': ['2'],
  'model.attention_kernel': ['splash'],
  'model.mlp_dropout_rate': ['0.3'],
  'model.rope_beta_fast': ['8.0'],
  'model.rope_original_length': ['100'],
  'model.rope_beta_slow': ['8.0'],
  'model.global_every': ['0', '2'],
  'optimizer.decay_exclude': [''],
  'data.train': ['{}/other.txt', '{}/rows.tsv'],
  'data.weights': ['0.7,0.3'],
  'data.validation': ['{}/other.txt', '{}/rows.tsv'],
  'data.text_column': ['other'],
  'data.label_column': ['topic'],
  'data.max_rows': ['40'],
  'tokenizer.path': ['{}/tokenizer'],
  'tokenizer.add': ['mask'],
  'tokenizer.train_megabytes': ['0.02'],
  'task.labels': ['good,bad', 'w,x,y,z', 'B-X,I-X,O,Q'],
  'task.pair_column': ['other'],
  'task.separator': [';'],
  'tuning.trainable': ['bias$'],
  'tuning.frozen': ['mlp/up'],
  'tuning.unfreeze_epochs': ['0.02'],
  'task.choice_columns': ['choices3'],
  'tuning.lora_targets': ['mlp/up'],
  'task.target_column': ['other'],
  'task.prefix': ['the '],
  'objective.members': ['x=span_corruption,r=span_corruption'],
  'objective.weights': ['0.3,0.7'],
  'objective.settings': ['x.noise_density=0.3'],
}
# What the recipes lack for a field, or for that of one file, to show: a corpus that has columns, a
# layer that is local, no memory.
FIRST = {
  'data.text_column': (('data.train', '{}/rows.tsv'),),
  'data.weights': (('data.train', 'a={0}/text.txt,b={0}/other.txt'),),
  'tokenizer.add': (('tokenizer.path', '{}/published'),),
  'model.adapter_placement': (('model.adapter_dim', '4'),),
  'model.global_every': (('model.window', '4'),),
  'tuning.lora_alpha': (('tuning.lora_rank', '2'),),
  'tuning.lora_targets': (('tuning.lora_rank', '2'),),
  'model.local_rope_theta': (('model.num_layers', '2'), ('model.window', '4')),
  'objective.pair_separators': (('task.pair_column', 'other'),),
  ('xlnet', 'model.position'): (('model.memory_length', '0'),),
  ('xlnet', 'model.position_offset'): (('model.memory_length', '0'),),
}
# Fields that act outside of batches and programs, and the test that shows how.
ELSEWHERE = {
  'data.test': 'test_the_test_set_is_among_the_evaluation_sets',
  'data.cache_dir': 'test_the_cache_lies_where_it_is_said_to',
  'data.prefetch': 'test_so_many_batches_are_made_ahead',
  'data.num_workers': 'test_so_many_processes_make_batches',
  'data.on_bad_row': 'test_bad_rows_stop_the_run_or_are_left_out',
  'task.threshold': 'test_what_only_predictions_depend_on',
  'task.unanswerable': 'test_what_only_predictions_depend_on',
  'task.null_threshold': 'test_what_only_predictions_depend_on',
  'objective.max_answer_length': 'test_how_many_and_how_long_answers_are_kept',
  'task.bleu_tokenizer': 'test_how_written_texts_are_scored',
  'task.lead_sentences': 'test_how_written_texts_are_scored',
  'objective.n_best': 'test_how_many_and_how_long_answers_are_kept',
}
# Choices that show nothing on these data, and why.
SAME = {
  ('task.subset', 'stsb'): 'needs another objective; configs/glue.py:stsb has it',
  ('task.subset', 'rte'): 'reads the columns of mrpc',
  ('data.documents', 'row'): 'what `auto` does for tables',
  ('data.documents', 'blank_line'): 'what `auto` does for text',
}
# Fields that change how a program runs and not what it computes.
PROGRAM_ONLY = {'model.attention_kernel', 'model.remat', 'model.scan_layers'}
# Fields that change what is predicted and not what is learned; tests of the objective compare it.
PREDICTED_ONLY = {'objective.max_answer_length', 'objective.n_best'}
