package metrics

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// RuleFault is one thing wrong with a rules file.
type RuleFault struct {
	Line  int // 0 where it is none's
	Cause string
}

// String is the fault with its line.
func (f RuleFault) String() string {
	if f.Line == 0 {
		return f.Cause
	}
	return fmt.Sprintf("line %d: %s", f.Line, f.Cause)
}

// RulesError is everything wrong with a rules file.
type RulesError struct{ Faults []RuleFault }

// Error lists the faults.
func (e *RulesError) Error() string {
	all := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		all[i] = f.String()
	}
	return strings.Join(all, "; ")
}

// ParseRules returns rules as a rules file changes them: a YAML mapping of names to threshold, window, for, cool_down and off. What it doesn't name stays as it
// is. The error is a *[RulesError].
func ParseRules(content []byte, rules []Rule) ([]Rule, error) {
	f := &rulesFile{rules: append([]Rule{}, rules...)}
	f.read(content)
	if len(f.faults) > 0 {
		return nil, &RulesError{f.faults}
	}
	return f.rules, nil
}

type rulesFile struct {
	rules  []Rule
	faults []RuleFault
}

func (f *rulesFile) add(line int, format string, args ...any) {
	f.faults = append(f.faults, RuleFault{line, fmt.Sprintf(format, args...)})
}

func (f *rulesFile) read(content []byte) {
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	var doc yaml.Node
	switch err := decoder.Decode(&doc); {
	case errors.Is(err, io.EOF): // nothing to change
		return
	case err != nil:
		f.add(0, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	var more yaml.Node
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		f.add(more.Line, "there is more than one YAML document")
	}
	f.mapping(doc.Content[0], "names of alerts", func(key, value *yaml.Node) {
		rule := f.rule(key.Value)
		if rule == nil {
			f.add(key.Line, "%q is no alert: there are %s", key.Value, strings.Join(names(f.rules), ", "))
			return
		}
		f.mapping(value, "threshold, window, for, cool_down and off", func(key, value *yaml.Node) { f.set(rule, key, value) })
	})
}

// mapping goes through one, in which no key may come twice.
func (f *rulesFile) mapping(n *yaml.Node, of string, each func(key, value *yaml.Node)) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	if n.Kind != yaml.MappingNode {
		f.add(n.Line, "here a mapping of %s is expected", of)
		return
	}
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		key := n.Content[i]
		if seen[key.Value] {
			f.add(key.Line, "%q comes twice", key.Value)
			continue
		}
		seen[key.Value] = true
		each(key, n.Content[i+1])
	}
}

func (f *rulesFile) rule(name string) *Rule {
	for i := range f.rules {
		if f.rules[i].Name == name {
			return &f.rules[i]
		}
	}
	return nil
}

func (f *rulesFile) set(r *Rule, key, value *yaml.Node) {
	text := value.Value
	if value.Kind != yaml.ScalarNode {
		text = "" // which is no value of any of them
	}
	switch key.Value {
	case "threshold":
		v, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
			f.add(value.Line, "threshold %q is not a number, 0 or more", text)
			return
		}
		r.Threshold = v
	case "for":
		f.duration(&r.For, "for", value.Line, text)
	case "cool_down":
		f.duration(&r.CoolDown, "cool_down", value.Line, text)
	case "window":
		if r.Window == 0 {
			f.add(key.Line, "%s has no window: it judges the moment", r.Name)
			return
		}
		f.duration(&r.Window, "window", value.Line, text)
	case "off":
		switch text {
		case "true":
			r.Off = true
		case "false":
			r.Off = false
		default:
			f.add(value.Line, "off %q is neither true nor false", text)
		}
	default:
		f.add(key.Line, "%q is nothing that a rule has: there are threshold, window, for, cool_down and off", key.Value)
	}
}

func (f *rulesFile) duration(to *time.Duration, name string, line int, text string) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > 31*24*time.Hour {
		f.add(line, "%s %q is not a duration such as 90s, 5m or 1h, up to 744h", name, text)
		return
	}
	*to = d
}

func names(rules []Rule) []string {
	all := make([]string, len(rules))
	for i, r := range rules {
		all[i] = r.Name
	}
	return all
}
