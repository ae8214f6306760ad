# bash completion for gla: the options are those that --help lists, so there is no second list to keep.
_gla() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    case $prev in
        -m | --mode) mapfile -t COMPREPLY < <(compgen -W "generate chat logits perplexity tokenize bench info" -- "$cur") ;;
        *) case $cur in
            -*) mapfile -t COMPREPLY < <(compgen -W "$("${COMP_WORDS[0]}" --help 2>/dev/null | grep -o -- '--[a-z-]*' | sort -u)" -- "$cur") ;;
            *) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
        esac ;;
    esac
}
complete -o filenames -F _gla gla
