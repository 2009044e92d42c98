#compdef buildctl
# zsh completion for buildctl
#
# Verbs and options come from buildctl's own help, names and numbers from the daemon; without a daemon there are
# none, and nothing is said about it.

# "word:description" lines of the verbs, or of the actions of a verb.
_buildctl_words() {
  COLUMNS=200 command buildctl "$@" --help 2>/dev/null | sed -nE 's/^ {2,4}([a-z][a-z-]*)  +(.*)/\1:\2/p'
}

# "option:description" lines of a verb, or of one action of it. The description of a long option is on the next line.
_buildctl_options() {
  COLUMNS=200 command buildctl "$@" --help 2>/dev/null |
    sed -E ':join; N; $!b join; s/\n {16,}/  /g' |
    sed -nE '/^  -/ { s/^  ((-[^ ,]+( [A-Z|]+| \{[^}]*\})?(, )?)+) *(.*)/\1\t\5/; p }' |
    while IFS=$'\t' read -r names description; do
      for name in ${(s:, :)names}; do
        print -r -- "${name%% *}:${description//:/ }"
      done
    done
}

# Values of a key in the daemon's answer.
_buildctl_ask() { # KEY VERB [ARG…]
  local key=$1
  shift
  command buildctl $socket --timeout 2s "$@" --json 2>/dev/null |
    grep -oE "\"$key\": *(\"[^\"\\\\]*\"|[0-9]+)" | sed -E "s/^\"$key\": *//; s/\"//g" | sort -u
}

_buildctl() {
  local verb= action= word folder= current=$words[CURRENT] previous=$words[CURRENT-1]
  local -a socket arguments takes lines
  integer i
  takes=(--socket --timeout --run --limit -n --output -o --extract -x --kind --priority --tail --after --offset --note --max-bytes --max-age --min-free-bytes --min-free-inodes --force-package --strategy --max-retries --slowest --interval --depth -d --lines --tokens --focus --mention --format --path)

  for ((i = 2; i < CURRENT; i++)); do
    word=$words[i]
    [[ $word == --socket ]] && socket=(--socket "${words[i + 1]}")
    if [[ $word == -* ]]; then
      (( $takes[(Ie)$word] )) && (( i++ ))
    elif [[ -z $verb ]]; then
      verb=$word
    else
      arguments+=("$word")
    fi
  done
  case $verb in
    repo|artifacts|db) action=$arguments[1] ;;
    map) [[ $arguments[1] == (status|tags|refs|cancel) ]] && action=$arguments[1] || action=get ;;
  esac

  case $previous in
    --socket|--output|-o) _files; return ;;
    --extract|-x) _directories; return ;;
    --run) compadd -- latest $(_buildctl_ask number list); return ;;
    --format) compadd -- text jsonl ctags; return ;;
    --strategy) compadd -- none conservative aggressive; return ;;
    --force-package) compadd -- $(_buildctl_ask package history --limit 200); return ;;
    --timeout|--limit|-n|--kind|--priority|--tail|--after|--offset|--note|--slowest|--interval|--depth|-d|--lines|--tokens|--focus|--mention|--path|--max-*|--min-*) return 1 ;;
  esac

  if [[ $current == -* ]]; then
    if [[ -z $verb ]]; then
      compadd -- --socket --timeout --help --version
    else
      lines=(${(f)"$(_buildctl_options $verb $action)"})
      _describe -o option lines
    fi
    return
  fi

  case $verb/$#arguments in
    /*|help/0)
      lines=(${(f)"$(_buildctl_words)"})
      _describe verb lines
      ;;
    start/*|plan/*|list/0)
      compadd -- $(_buildctl_ask name repo list)
      _directories
      ;;
    cancel/0|wait/0|logs/0|show/0) compadd -- latest $(_buildctl_ask number list) ;;
    cancel/1|logs/1) compadd -- $(_buildctl_ask name show $arguments[1]) ;;
    history/0|why/0|verify/0) compadd -- $(_buildctl_ask package history --limit 200) ;;
    repo/0|artifacts/0|db/0)
      lines=(${(f)"$(_buildctl_words $verb)"})
      _describe action lines
      ;;
    map/0)
      lines=(${(f)"$(_buildctl_words $verb)"})
      _describe action lines
      compadd -- $(_buildctl_ask name repo list)
      _directories
      ;;
    map/1) [[ $action == get && $arguments[1] != get ]] || compadd -- $(_buildctl_ask name repo list) ;;
    repo/1) [[ $action == list ]] || compadd -- $(_buildctl_ask name repo list) ;;
    repo/2)
      [[ $action == (tree|docs|cat) ]] || return 1
      [[ $current == */* ]] && folder=${current%/*}
      compadd -S '' -- $(_buildctl_ask path repo tree $arguments[2] "$folder" --depth 1)
      ;;
    artifacts/1|db/1)
      [[ $verb/$action == db/(stats|verify|reset-db) ]] || compadd -- $(_buildctl_ask package history --limit 200)
      ;;
    call/0) compadd -- $(command buildctl schema 2>/dev/null | grep -oE '"[a-z]+\.[a-z]+"' | tr -d '"') ;;
    completion/0) compadd -- bash zsh fish ;;
  esac
}

# As a file in $fpath this is run to complete; sourced, it registers itself.
if [[ $funcstack[1] == _buildctl ]]; then
  _buildctl "$@"
else
  compdef _buildctl buildctl
fi
