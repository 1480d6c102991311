package config

import (
	"strings"
)

// Reference returns the Markdown table of all variables, which the README holds.
func Reference() string {
	var b strings.Builder
	b.WriteString("| Variable | Default | Meaning |\n|---|---|---|\n")
	for _, s := range settings() {
		name := code(s.variable())
		if s.secret() {
			name += " or " + code(s.file())
		}
		meaning := s.Tag.Get("desc")
		if one := s.oneof(); one != nil {
			meaning += " (" + s.allowed() + ")"
		} else if low := s.Tag.Get("min"); low != "" {
			meaning += " (" + limits(low, s.Tag.Get("max")) + ")"
		}
		if s.Tag.Get("need") != "" {
			meaning += "; required by what uses it"
		}
		b.WriteString("| " + name + " | " + code(s.Tag.Get("default")) + " | " + meaning + " |\n")
	}
	return b.String()
}

func code(text string) string {
	if text == "" {
		return ""
	}
	return "`" + text + "`"
}

func limits(low, high string) string {
	if high == "" {
		return "at least " + low
	}
	return low + " to " + high
}
