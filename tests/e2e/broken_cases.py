"""What may be broken in a set-up, each with the words in which `check` says so."""

from __future__ import annotations

# name -> (command and flags, area, words of the text, words of the remedy); {} are what a fixture provides
ERRORS = {
    # --- flags
    "a batch that does not divide": (
        "rl --train.batch_size 12 --train.micro_batch_size 4",
        "flags",
        ["--train.batch_size 12", "does not divide the 32 sequences"],
        ["choose 8 or 16"],
    ),
    "a flag that is not there": (
        "rl --rollout.n_sample_per_prompt 4",
        "flags",
        ["--rollout.n_sample_per_prompt", "no such flag"],
        ["did you mean --rollout.n_samples_per_prompt"],
    ),
    "nothing to train on": (
        "rl --data.prompt_dataset None",
        "flags",
        ["--data.prompt_dataset is required"],
        ["give the prompts, a file, folder or hub name"],
    ),
    # --- device
    "flash attention on a CPU": (
        "rl --ds.attn_implementation flash_attention_2",
        "model",
        ["flash_attention_2 needs flash_attention, which this cpu lacks"],
        ["give --ds.attn_implementation sdpa"],
    ),
    # --- models
    "no model folder": (
        "rl --actor.model_name_or_path ./modle",
        "model",
        ["./modle does not exist"],
        ["config.json and *.safetensors, or a hub name"],
    ),
    "a model in pickles": (
        "rl --actor.model_name_or_path pickled",
        "model",
        ["pickled has only pickle weights (pytorch_model.bin)"],
        ["*.safetensors"],
    ),
    "an index that names a missing shard": (
        "sft --model.model_name_or_path index",
        "model",
        ["lacks model-00002-of-00002.safetensors, which its index names"],
        ["copy or download it again"],
    ),
    "an index that was cut off": (
        "rl --actor.model_name_or_path torn_index",
        "model",
        ["torn_index/model.safetensors.index.json is not the whole index"],
        ["copy or download it again"],
    ),
    "an unknown architecture": (
        "dpo --model.model_name_or_path unknown",
        "model",
        ["The model", "unknown cannot be read", "qwen99"],
        ["check its config.json"],
    ),
    "a config.json that is no JSON": (
        "rl --actor.model_name_or_path bad_json",
        "model",
        ["bad_json cannot be read", "config"],
        ["check its config.json"],
    ),
    "half of the weights": (
        "rm --model.model_name_or_path half",
        "model",
        ["half cannot be loaded (model.safetensors"],
        ["are its files complete?"],
    ),
    "adapters instead of a model": (
        "rl --actor.model_name_or_path adapters",
        "model",
        ["adapters holds adapters without their base"],
        ["give the folder of a whole model"],
    ),
    "an adapter for a module that is not there": (
        "rl --ds.lora.rank 4 --ds.lora.target_modules q_proj qkv",
        "model",
        ["qkv is no linear module of the model"],
        ["name some of", "q_proj"],
    ),
    "a reward model without a head": (
        "rl --reward.model_name_or_path model",
        "model",
        ["no score.weight, the head of a reward model"],
        ["--ds.value_head_prefix"],
    ),
    # --- tokenizers
    "no chat template": (
        "rl --actor.model_name_or_path no_template --data.apply_chat_template",
        "tokenizer",
        ["no_template has no chat template"],
        ["use --data.input_template"],
    ),
    "no end of text": (
        "rl --actor.model_name_or_path no_eos",
        "tokenizer",
        ["no_eos has no EOS token"],
        ["set eos_token in its tokenizer_config.json"],
    ),
    "more tokens than the embedding has rows": (
        "sft --model.model_name_or_path more_tokens",
        "tokenizer",
        ["more_tokens has 291 tokens", "embedding 259 rows"],
        ["the tokenizer that the model was trained with"],
    ),
    "a critic with another vocabulary": (
        "rl --algo.advantage.estimator gae --critic.model_name_or_path other_scorer",
        "tokenizer",
        ["the critic other_scorer has another vocabulary (291 tokens)"],
        ["the same vocabulary"],
    ),
    "a reference with another vocabulary": (
        "dpo --ref.model_name_or_path more_tokens",
        "tokenizer",
        ["the reference more_tokens has another vocabulary"],
        ["the same vocabulary"],
    ),
    # --- data
    "a missing file": (
        "rl --data.prompt_dataset trian.jsonl",
        "data",
        ["trian.jsonl does not exist"],
        ["did you mean train.jsonl?"],
    ),
    "a missing evaluation file": (
        "rl --eval.dataset held_uot.jsonl",
        "evaluation data",
        ["held_uot.jsonl does not exist"],
        ["did you mean held_out.jsonl?"],
    ),
    "a corrupt line": (
        "rl --data.prompt_dataset corrupt.jsonl",
        "data",
        ["corrupt.jsonl, line 3: not valid JSON"],
        ["each line must be one JSON object"],
    ),
    "a parquet file that was cut off": (
        "sft --data.dataset truncated.parquet",
        "data",
        ["truncated.parquet is not a whole parquet file"],
        ["copy or download it again"],
    ),
    "a column of another name": (
        "rl --data.prompt_dataset renamed.jsonl",
        "data",
        ["no column 'input' (--data.input_key)"],
        ["question, answer"],
    ),
    "a pair without its worse answer": (
        "rm --data.rejected_key worse",
        "data",
        ["no column 'worse' (--data.rejected_key)"],
        ["prompt, chosen, rejected"],
    ),
    "no rows": ("dpo --data.dataset empty.jsonl", "data", ["empty.jsonl has no rows"], ["at least one"]),
    "a prompt longer than its room": (
        "rl --data.prompt_dataset long.jsonl --data.overlong_prompt refuse",
        "data",
        ["row 21 of long has a prompt of 200 tokens, more than the 36 that fit"],
        ["drop or to truncate"],
    ),
    "numbers where texts should be": (
        "sft --data.dataset no_message.jsonl",
        "data",
        ["column 'input' is int, not text"],
        ["--data.apply_chat_template"],
    ),
    # --- rewards
    "no reward file": (
        "rl --reward.remote_url rewards.py",
        "reward",
        ["rewards.py does not exist"],
        ["did you mean"],
    ),
    "a reward with a syntax error": (
        "rl --reward.remote_url syntax.py",
        "reward",
        ["syntax error in", "syntax.py, line 1"],
        ["expected reward_func(queries"],
    ),
    "a reward that cannot be imported": (
        "rl --reward.remote_url imports.py",
        "reward",
        ["imports.py: it cannot be imported", "no_such_module"],
        ["expected reward_func(queries"],
    ),
    "a reward of another name": (
        "rl --reward.remote_url other_name.py",
        "reward",
        ["no function reward_func (its functions: score)"],
        ["expected reward_func(queries"],
    ),
    "a reward that takes two arguments": (
        "rl --reward.remote_url two_arguments.py",
        "reward",
        ["two_arguments.py"],
        ["found reward_func(queries, labels)"],
    ),
    "a reward that raises": (
        "rl --reward.remote_url raises.py",
        "reward",
        ["raises.py failed its trial call", "ZeroDivisionError"],
        ["expected reward_func(queries"],
    ),
    "a reward that returns nothing": (
        "rl --reward.remote_url none.py",
        "reward",
        ["none.py failed its trial call", "the answer is None"],
        ["{'rewards': one number per query"],
    ),
    "rewards that are not finite": (
        "rl --reward.remote_url nan.py",
        "reward",
        ["nan.py failed its trial call", "not finite"],
        ["expected reward_func(queries"],
    ),
    "a reward that sleeps beyond its limit": (
        "rl --reward.remote_url sleeps.py --reward.timeout_s 0.5",
        "reward",
        ["sleeps.py gave no answer to a trial call within the 0.5 s of --reward.timeout_s"],
        ["make it faster, or raise --reward.timeout_s"],
    ),
    "a reward that ends its process": (
        "rl --reward.remote_url exits.py",
        "reward",
        ["exits.py failed its trial call", "exit code 3"],
        ["expected reward_func(queries"],
    ),
    "a reward server that is not there": (
        "rl --reward.remote_url http://127.0.0.1:{closed}/score",
        "reward",
        ["http://127.0.0.1:", "/score failed its trial call", "ConnectError"],
        ["start the server"],
    ),
    "a reward server that fails": (
        "rl --reward.remote_url {broken}",
        "reward",
        ["/broken failed its trial call", "HTTP status 500: out of order"],
        ["start the server", "POST"],
    ),
    "a reward server without that path": (
        "rl --reward.remote_url {absent}",
        "reward",
        ["/absent failed its trial call", "HTTP status 404"],
        ["check the port and path"],
    ),
    # --- judges
    "a rubric that shows what the rows do not have": (
        "rl --judge.model_name_or_path model --judge.prompt no_note.yaml",
        "judge",
        ["rubric no_note.yaml: its instructions cannot be rendered, prompt"],
        ["the row does not have what they ask for", "note"],
    ),
    "a rubric without a scale": (
        "rl --judge.model_name_or_path model --judge.prompt no_scale.yaml",
        "judge",
        ["no_scale.yaml", "criterion correct"],
        ["boolean"],
    ),
    "a judge's endpoint that is not there": (
        "rl --judge.url http://127.0.0.1:{closed}/v1 --judge.served_model_name m --judge.prompt rubric.yaml",
        "judge",
        ["http://127.0.0.1:", "/v1 cannot be reached"],
        ["start it, or check the URL"],
    ),
    # --- agents
    "an agent file that is not there": (
        "rl --train.agent_func_path no_agnet.py",
        "agent",
        ["no_agnet.py does not exist"],
        ["did you mean no_agent.py"],
    ),
    "a file without an agent": (
        "rl --train.agent_func_path no_agent.py",
        "agent",
        ["no_agent.py: it holds 0 agents"],
        ["expected one class that inherits from"],
    ),
    # --- folders and disk
    "an output folder below a file": (
        "rl --ckpt.output_dir a_file/out",
        "folders",
        ["--ckpt.output_dir a_file/out cannot be written to", "a_file is a file"],
        ["choose another --ckpt.output_dir"],
    ),
    "a folder that is closed": (
        "sft --ckpt.path /proc/checkpoints",
        "folders",
        ["--ckpt.path /proc/checkpoints cannot be written to", "/proc is closed"],
        ["choose another --ckpt.path"],
    ),
    "an earlier run's checkpoints": (
        "rl --ckpt.path earlier/checkpoints",
        "folders",
        ["earlier/checkpoints holds checkpoints up to step 7 of an earlier run"],
        ["--ckpt.load_enable"],
    ),
    "checkpoints for which the disk is too small": (
        "rl --train.num_episodes 100000000 --ckpt.save_steps 1 --ckpt.max_num 100000000",
        "disk",
        ["--ckpt.path", "will be written and", "are free"],
        ["lower --ckpt.max_num"],
    ),
    # --- the machine and the cluster
    "more memory than the machine has": (
        "rl --data.max_len {endless} --rollout.max_new_tokens 100000",
        "memory",
        ["This run does not fit", "a machine's processes would hold", "too little"],
        ["--plan.force starts it all the same"],
    ),
    "a dashboard port in use": (
        "rl --ray.dashboard --ray.dashboard_port {taken}",
        "machine",
        ["--ray.dashboard_port", "is in use"],
        ["choose a free port"],
    ),
    "no cluster at that address": (
        "rl --ray.address 127.0.0.1:{closed} --actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1",
        "device",
        ["No Ray cluster answers at --ray.address 127.0.0.1:"],
        ["start one with `ray start --head`"],
    ),
}  # fmt: skip
WARNINGS = {
    "a reward model with another vocabulary": (
        "rl --reward.model_name_or_path other_scorer",
        "tokenizer",
        ["the reward model other_scorer has another vocabulary (291 tokens)", "anew"],
        ["with the policy's vocabulary"],
    ),
    "no column for labels": (
        "rl --data.label_key None",
        "data",
        ["no column is named for the labels", "answer, difficulty"],
        ["give --data.label_key"],
    ),
    "labels that are empty": (
        "rl --data.prompt_dataset unlabelled.jsonl",
        "data",
        ["10 of 20 labels in column 'answer' are empty"],
        ["fill them in"],
    ),
    "responses that are empty": (
        "sft --data.dataset unlabelled.jsonl",
        "data",
        ["10 of 20 rows: empty response"],
        ["leave them out"],
    ),
    "pairs of two equal answers": (
        "dpo --data.dataset same_pairs.jsonl",
        "data",
        ["7 of 8 rows: identical"],
        ["leave them out"],
    ),
    "prompts that will be dropped": (
        "rl --data.prompt_dataset long.jsonl --data.overlong_prompt drop",
        "data",
        ["1 of 21 prompts are longer than the room for them and will be dropped"],
        ["raise --data.max_len"],
    ),
    "fewer prompts than a batch": (
        "rl --rollout.batch_size 32",
        "data",
        ["20 prompts are fewer than one batch of 32"],
        ["--rollout.batch_size 20"],
    ),
    "more tokens than the model has positions": (
        "sft --data.max_len 512",
        "plan",
        ["--data.max_len 512 is beyond the 256 positions"],
        ["give 256 or less"],
    ),
}  # fmt: skip
