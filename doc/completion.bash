# bash completion for gla, printed by gla --completion bash
_gla() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} words= kind=-f
    case $prev in
        -m | --mode) words='generate chat logits perplexity tokenize bench info' ;;
        --kv) words='f32 f16 q8_0' ;;
        --draft) words='off lookup mtp' ;;
        --prompt-cache) kind=-d ;;
        -i | --prompt | -n | --steps | -t | --temperature | -p | --top-p | --min-p | -k | --top-k | --repeat-penalty | --presence-penalty | -s | --seed | --logit-bias | --stop | --logprobs | --pre | -y | --system | --think-budget | --loop-guard | --snapshot-bytes | -j | --threads | -c | --ctx | -b | --batch | --cache-bytes | --prompt-len | --depth) return ;; # texts and numbers
        *) [[ $cur == -* ]] && words=' --prompt --file --messages --steps --temperature --top-p --min-p --top-k --repeat-penalty --presence-penalty --seed --logit-bias --stop --ignore-eos --echo --json --json-only --logprobs --tokenizer --pre --mode --system --think --no-think --think-budget --hide-thinking --loop-guard --snapshot-bytes --forget --threads --ctx --kv --fast --draft --batch --load-state --save-state --prompt-cache --cache-bytes --ids --out --prompt-len --depth --quiet --help --version' ;;
    esac
    if [[ $words ]]; then mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
    else mapfile -t COMPREPLY < <(compgen $kind -- "$cur"); fi
}
complete -o filenames -F _gla gla
