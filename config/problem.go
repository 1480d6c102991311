package config

import (
	"fmt"
	"strings"
)

// Problem is one thing wrong with the settings.
type Problem struct {
	Variable string // its full name
	Value    string // what it holds, "" where nothing may or need be shown
	Cause    string // what is wrong, following "Variable "
	Remedy   string // what to do, a sentence
}

// String is the problem on one line.
func (p Problem) String() string {
	value := ""
	if p.Value != "" {
		value = fmt.Sprintf("=%q", p.Value)
	}
	return fmt.Sprintf("%s%s %s. %s", p.Variable, value, p.Cause, p.Remedy)
}

// Error is everything wrong with the settings, at once. A command that meets one exits with code 2.
type Error struct{ Problems []Problem }

// Error lists the problems, one a line.
func (e *Error) Error() string {
	var b strings.Builder
	if len(e.Problems) == 1 {
		b.WriteString("the configuration has a problem:")
	} else {
		fmt.Fprintf(&b, "the configuration has %d problems:", len(e.Problems))
	}
	for _, p := range e.Problems {
		b.WriteString("\n  - " + p.String())
	}
	return b.String()
}
