# bash completion for buildctl
#
# Verbs and options come from buildctl's own help, names and numbers from the daemon; without a daemon there are
# none, and nothing is said about it.

# The options of a verb, or of one action of it.
_buildctl_options() {
  COLUMNS=200 command buildctl "$@" --help 2>/dev/null |
    sed -nE '/^  -/ { s/^  //; s/   *[a-z$].*//; s/, /\n/g; p }' | sed -E 's/ .+//'
}

_buildctl_verbs() {
  COLUMNS=200 command buildctl --help 2>/dev/null | sed -nE 's/^  ([a-z]+)  .*/\1/p'
}

_buildctl_actions() {
  COLUMNS=200 command buildctl "$1" --help 2>/dev/null | sed -nE 's/^    ([a-z][a-z-]*)  .*/\1/p'
}

# Values of a key in the daemon's answer.
_buildctl_ask() { # KEY VERB [ARG…]
  local key=$1
  shift
  command buildctl "${socket[@]}" --timeout 2s "$@" --json 2>/dev/null |
    grep -oE "\"$key\": *(\"[^\"\\\\]*\"|[0-9]+)" | sed -E "s/^\"$key\": *//; s/\"//g" | sort -u
}

_buildctl_reply() { # WORD…
  local IFS=$' \t\n'
  COMPREPLY+=($(compgen -W "$*" -- "$current"))
}

_buildctl() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
  local verb= action= word folder= takes=' --socket --timeout --run --limit -n --output -o --extract -x --kind --priority --tail --after --offset --note --max-bytes --max-age --min-free-bytes --min-free-inodes --force-package --strategy --max-retries --slowest --interval --depth -d --lines --tokens --focus --mention --format --path '
  local -a socket=() arguments=()
  local -i i
  COMPREPLY=()

  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    if [[ $word == --socket ]]; then
      socket=(--socket "${COMP_WORDS[i + 1]}")
    fi
    if [[ $word == -* ]]; then
      [[ $takes == *" $word "* ]] && i+=1
    elif [[ -z $verb ]]; then
      verb=$word
    else
      arguments+=("$word")
    fi
  done
  case $verb in
    repo | artifacts | db) action=${arguments[0]} ;;
    map)
      case ${arguments[0]} in
        status | tags | refs | cancel) action=${arguments[0]} ;;
        *) action=get ;;
      esac
      ;;
  esac

  case $previous in
    --socket | --output | -o) COMPREPLY=($(compgen -f -- "$current")); compopt -o filenames 2>/dev/null; return ;;
    --extract | -x) COMPREPLY=($(compgen -d -- "$current")); compopt -o filenames 2>/dev/null; return ;;
    --run) _buildctl_reply latest $(_buildctl_ask number list); return ;;
    --format) _buildctl_reply text jsonl ctags; return ;;
    --strategy) _buildctl_reply none conservative aggressive; return ;;
    --force-package) _buildctl_reply $(_buildctl_ask package history --limit 200); return ;;
    --timeout | --limit | -n | --kind | --priority | --tail | --after | --offset | --note | --slowest | --interval | --depth | -d | --lines | --tokens | --focus | --mention | --path | --max-* | --min-*)
      return
      ;;
  esac

  if [[ $current == -* ]]; then
    if [[ -z $verb ]]; then
      _buildctl_reply --socket --timeout --help --version
    else
      _buildctl_reply $(_buildctl_options "$verb" ${action:+"$action"})
    fi
    return
  fi

  case $verb/${#arguments[@]} in
    /*) _buildctl_reply $(_buildctl_verbs) ;;
    start/* | plan/* | list/0)
      _buildctl_reply $(_buildctl_ask name repo list)
      COMPREPLY+=($(compgen -d -- "$current"))
      compopt -o filenames -o nospace 2>/dev/null
      ;;
    cancel/0 | wait/0 | logs/0 | show/0) _buildctl_reply latest $(_buildctl_ask number list) ;;
    cancel/1 | logs/1) _buildctl_reply $(_buildctl_ask name show "${arguments[0]}") ;;
    history/0 | why/0 | verify/0) _buildctl_reply $(_buildctl_ask package history --limit 200) ;;
    repo/0 | artifacts/0 | db/0) _buildctl_reply $(_buildctl_actions "$verb") ;;
    map/0)
      _buildctl_reply $(_buildctl_actions map) $(_buildctl_ask name repo list)
      COMPREPLY+=($(compgen -d -- "$current"))
      compopt -o filenames -o nospace 2>/dev/null
      ;;
    map/1) [[ $action == get && ${arguments[0]} != get ]] || _buildctl_reply $(_buildctl_ask name repo list) ;;
    repo/1) [[ $action == list ]] || _buildctl_reply $(_buildctl_ask name repo list) ;;
    repo/2)
      case $action in
        tree | docs | cat)
          [[ $current == */* ]] && folder=${current%/*}
          _buildctl_reply $(_buildctl_ask path repo tree "${arguments[1]}" "$folder" --depth 1)
          compopt -o nospace 2>/dev/null
          ;;
      esac
      ;;
    artifacts/1 | db/1)
      case $verb/$action in
        db/stats | db/verify | db/reset-db) ;;
        *) _buildctl_reply $(_buildctl_ask package history --limit 200) ;;
      esac
      ;;
    call/0) _buildctl_reply $(command buildctl schema 2>/dev/null | grep -oE '"[a-z]+\.[a-z]+"' | tr -d '"') ;;
    completion/0) _buildctl_reply bash zsh fish ;;
    help/0) _buildctl_reply $(_buildctl_verbs) ;;
  esac
}

complete -F _buildctl buildctl
