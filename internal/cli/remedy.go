package cli

import "strings"

// isCommand tells a remedy that is a command from one that is to be done otherwise.
func isCommand(remedy string) bool { return strings.HasPrefix(remedy, "godwit ") }

// shellLine gives a remedy as a line to be copied into a shell: what is no command
// is a comment.
func shellLine(remedy string) string {
	if isCommand(remedy) {
		return remedy
	}
	return "# " + remedy
}

// inWords gives remedies within a sentence.
func inWords(remedies []string) string {
	words := make([]string, len(remedies))
	for i, remedy := range remedies {
		words[i] = remedy
		if isCommand(remedy) {
			words[i] = "`" + remedy + "`"
		}
	}
	return strings.Join(words, "; or: ")
}
