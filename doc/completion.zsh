#compdef gla
# zsh completion for gla: zsh reads the options from --help
_gnu_generic "$@"
