# fish completion for buildctl
#
# Verbs and options come from buildctl's own help, names and numbers from the daemon; without a daemon there are
# none, and nothing is said about it.

# The verb and its arguments before the cursor, without options and their values.
function __buildctl_words
    set -l skip no
    for word in (commandline -opc)[2..-1]
        if test $skip = yes
            set skip no
        else if contains -- $word --socket --timeout --run --limit -n --output -o --extract -x --kind --priority --tail --after --offset --note --max-bytes --max-age --min-free-bytes --min-free-inodes --force-package --strategy --max-retries --slowest --interval --depth -d --lines --tokens --focus --mention --format --path
            set skip yes
        else if not string match -q -- '-*' $word
            echo $word
        end
    end
end

# Succeeds when the verb is one of ARGV[2..] and ARGV[1] arguments follow it.
function __buildctl_at
    set -l words (__buildctl_words)
    test (count $words) -eq (math $argv[1] + 1); and contains -- $words[1] $argv[2..-1]
end

function __buildctl_socket
    set -l words (commandline -opc)
    if set -l at (contains -i -- --socket $words)
        and test (count $words) -gt $at
        echo --socket
        echo $words[(math $at + 1)]
    end
end

# "word<tab>description" of the verbs, or of the actions of a verb.
function __buildctl_help_words
    COLUMNS=200 command buildctl $argv --help 2>/dev/null | string replace -rf '^ {2,4}([a-z][a-z-]*)  +(.*)' '$1\t$2'
end

# "option<tab>description" of the verb at hand, or of its action. The description of a long option is on the next line.
function __buildctl_options
    set -l words (__buildctl_words)
    if test (count $words) -eq 0
        printf '%s\n' --socket --timeout --help --version
        return
    end
    if contains -- $words[1] repo artifacts db; or begin
            test $words[1] = map; and contains -- $words[2] get status tags refs cancel
        end
        set words $words[1..(math min 2,(count $words))]
    else if test $words[1] = map
        set words map get
    else
        set words $words[1]
    end
    for line in (COLUMNS=200 command buildctl $words --help 2>/dev/null |
            string collect | string replace -ra '\n {16,}' '  ' | string match -r '^  -.*')
        set -l parts (string match -r '^  ((?:-[^ ,]+(?: [A-Z|]+| \{[^}]*\})?(?:, )?)+)\s*(.*)' -- $line)
        for name in (string split ', ' -- $parts[2])
            printf '%s\t%s\n' (string split ' ' -- $name)[1] $parts[3]
        end
    end
end

# Values of a key in the daemon's answer.
function __buildctl_ask # KEY VERB [ARG…]
    command buildctl (__buildctl_socket) --timeout 2s $argv[2..-1] --json 2>/dev/null |
        string match -ar "\"$argv[1]\": *(?:\"[^\"\\\\]*\"|[0-9]+)" |
        string replace -r "^\"$argv[1]\": *" '' | string trim -c '"' | sort -u
end

# What is in the directory of a repository that the word at the cursor names.
function __buildctl_paths
    set -l folder (string match -r '^(.*)/' -- (commandline -ct))[2]
    __buildctl_ask path repo tree (__buildctl_words)[3] "$folder" --depth 1
end

complete -c buildctl -f
complete -c buildctl -n 'string match -q -- "-*" (commandline -ct)' -a '(__buildctl_options)'
complete -c buildctl -n 'test (count (__buildctl_words)) -eq 0' -a '(__buildctl_help_words)'
complete -c buildctl -n '__buildctl_at 0 help' -a '(__buildctl_help_words)'
complete -c buildctl -n 'contains -- (__buildctl_words)[1] start plan' -a '(__buildctl_ask name repo list) (__fish_complete_directories)'
complete -c buildctl -n '__buildctl_at 0 list' -a '(__buildctl_ask name repo list) (__fish_complete_directories)'
complete -c buildctl -n '__buildctl_at 0 cancel wait logs show' -a 'latest (__buildctl_ask number list)'
complete -c buildctl -n '__buildctl_at 1 cancel logs' -a '(__buildctl_ask name show (__buildctl_words)[2])'
complete -c buildctl -n '__buildctl_at 0 history why verify' -a '(__buildctl_ask package history --limit 200)'
complete -c buildctl -n '__buildctl_at 0 repo artifacts db' -a '(__buildctl_help_words (__buildctl_words)[1])'
complete -c buildctl -n '__buildctl_at 0 map' -a '(__buildctl_help_words map) (__buildctl_ask name repo list) (__fish_complete_directories)'
complete -c buildctl -n '__buildctl_at 1 map; and contains -- (__buildctl_words)[2] get status tags refs cancel' -a '(__buildctl_ask name repo list)'
complete -c buildctl -n 'contains -- (__buildctl_words)[1] map' -l format -x -a 'text jsonl ctags'
complete -c buildctl -n '__buildctl_at 1 repo' -a '(__buildctl_ask name repo list)'
complete -c buildctl -n '__buildctl_at 2 repo; and contains -- (__buildctl_words)[2] tree docs cat' -a '(__buildctl_paths)'
complete -c buildctl -n '__buildctl_at 1 artifacts' -a '(__buildctl_ask package history --limit 200)'
complete -c buildctl -n '__buildctl_at 1 db; and not contains -- (__buildctl_words)[2] stats verify reset-db' -a '(__buildctl_ask package history --limit 200)'
complete -c buildctl -n '__buildctl_at 0 call' -a '(command buildctl schema 2>/dev/null | string match -ar "\"[a-z]+\\.[a-z]+\"" | string trim -c "\"")'
complete -c buildctl -n '__buildctl_at 0 completion' -a 'bash zsh fish'
complete -c buildctl -l socket -r -F -d "the daemon's socket"
complete -c buildctl -n 'contains -- (__buildctl_words)[1] start plan why' -l strategy -x -a 'none conservative aggressive'
complete -c buildctl -n 'contains -- (__buildctl_words)[1] start' -l force-package -x -a '(__buildctl_ask package history --limit 200)'
complete -c buildctl -n '__buildctl_at 1 artifacts' -s o -l output -r -F
complete -c buildctl -n '__buildctl_at 1 artifacts' -s x -l extract -r -a '(__fish_complete_directories)'
