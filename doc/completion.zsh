#compdef gla
# printed by gla --completion zsh
_arguments -s -S \
    '(-i --prompt)'{-i+,--prompt=}'[prompt; - or a pipe\: standard input]:TEXT: ' \
    '(-f --file)'{-f+,--file=}'[prompt from a file; - is standard input]:FILE:_files' \
    '--messages=[a conversation to be answered\: \[{"role"\: ..., "content"\: ...}, ...\]]:FILE:_files' \
    '(-n --steps)'{-n+,--steps=}'[tokens to generate, 0 = until the end (256)]:N: ' \
    '(-t --temperature)'{-t+,--temperature=}'[0 = always the likeliest token (1.0)]:X: ' \
    '(-p --top-p)'{-p+,--top-p=}'[draw from the likeliest share (0.9), 1 = off]:X: ' \
    '--min-p=[drop what is less than X times the likeliest, 0 = off]:X: ' \
    '(-k --top-k)'{-k+,--top-k=}'[draw from the N likeliest, 0 = off]:N: ' \
    '--repeat-penalty=[divide the scores of recent tokens, 1 = off]:X: ' \
    '--presence-penalty=[subtract from them, 0 = off]:X: ' \
    '(-s --seed)'{-s+,--seed=}'[same seed, same text (from the clock, printed)]:N: ' \
    '*--logit-bias=[add X to the score of a token, -inf bans it; may be repeated]:ID=X: ' \
    '*--stop=[end before this text; may be repeated]:TEXT: ' \
    '--ignore-eos[go on past end-of-text tokens]' \
    '--echo[print the prompt before the text]' \
    '--json[print a JSON object\: text, ids, timing; or what was measured]' \
    '--json-only[the text itself is one JSON object or array, and ends behind it]' \
    '--logprobs=[in it\: log probabilities, and the N likeliest tokens each time]:N: ' \
    '(-z --tokenizer)'{-z+,--tokenizer=}'[vocabulary (the model'\''s own)]:FILE:_files' \
    '--pre=[pre-tokenizer of the vocabulary (what its file says)]:NAME: ' \
    '(-m --mode)'{-m+,--mode=}'[what to do]:NAME:(generate chat logits perplexity tokenize bench info)' \
    '(-y --system)'{-y+,--system=}'[system prompt, for a chat]:TEXT: ' \
    '--think[think before answering (as the model'\''s template has it)]' \
    '--no-think[answer at once]' \
    '--think-budget=[tokens of a thought before it is closed, 0 = no limit]:N: ' \
    '--hide-thinking[do not show thoughts; only a terminal shows them at all]' \
    '--loop-guard=[tokens of repetition that a chat takes for a loop, 0 = off (96)]:N: ' \
    '--snapshot-bytes=[memory to undo turns without reading again (256M)]:N: ' \
    '--forget[a full context drops the oldest turns instead of ending]' \
    '(-j --threads)'{-j+,--threads=}'[threads (one per core)]:N: ' \
    '(-c --ctx)'{-c+,--ctx=}'[positions of softmax layers (4096 or the model'\''s)]:N: ' \
    '--kv=[keys and values of softmax layers (f32)]:TYPE:(f32 f16 q8_0)' \
    '--fast[activations of 8 bits, not 16 or 24\: less exact, faster prompts]' \
    '--draft=[tokens that may come are read together with the last\: off, or lookup, from the text so far, or mtp, from the file'\''s block for multi-token prediction (lookup)]:SOURCE:(off lookup mtp)' \
    '(-b --batch)'{-b+,--batch=}'[prompt tokens per run (512)]:N: ' \
    '--load-state=[go on from a session]:FILE:_files' \
    '--save-state=[leave a session behind]:FILE:_files' \
    '--prompt-cache=[go on from, and leave, snapshots of prompts in a folder]:DIR:_files -/' \
    '--cache-bytes=[its size; K, M, G are understood. The oldest leave (1G)]:N: ' \
    '--ids=[token ids as text, for logits and tokenize; - is standard input]:FILE:_files' \
    '--out=[where logits go\: float32, a row per position]:FILE:_files' \
    '--prompt-len=[prompt tokens of the benchmark (512)]:N: ' \
    '--depth=[positions that the benchmark finds filled (0)]:N: ' \
    '--quiet[nothing but errors on standard error]' \
    '(-h --help)'{-h,--help}'[this page]' \
    '--version[version and kernels]' \
    '1:model:_files'
