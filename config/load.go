package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/kelseyhightower/envconfig"
)

// unset is a name that no environment variable can have: envconfig then takes the default.
const unset = "="

// Load reads the settings from the environment. The error is an *[Error] with every problem there is: values that
// can't be read or aren't allowed, settings that contradict each other, variables that don't exist, and what is
// missing of the needs. An empty variable counts as not set. A variable that doesn't exist is a problem only where it looks
// misspelt: see [Strangers] for the others.
func Load(needs ...Need) (Config, error) {
	var c check
	cfg := Default()
	for _, s := range settings() {
		if s.secret() {
			s.of(&cfg).SetString(c.secret(s))
		} else {
			c.read(s, s.of(&cfg))
		}
	}
	c.config(cfg, needs)
	misspelt, _ := unknown(os.Environ())
	c.problems = append(c.problems, misspelt...)
	if err := c.err(); err != nil {
		return Config{}, err
	}
	return cfg, nil
}

// parse lets envconfig read one variable, or def where there is none. envconfig stops at the first error of a struct;
// a struct for each field gives them all. Naming the variable in full keeps it from looking for one without the
// prefix, which it does for a name in a tag.
func parse(t reflect.Type, variable, def string) (reflect.Value, error) {
	one := reflect.New(reflect.StructOf([]reflect.StructField{{
		Name: "Value",
		Type: t,
		Tag:  reflect.StructTag(fmt.Sprintf("envconfig:%q default:%q", variable, def)),
	}}))
	err := envconfig.Process("", one.Interface())
	return one.Elem().Field(0), err
}

// read sets v from the environment; it stays as it is where there is nothing, or nothing readable.
func (c *check) read(s setting, v reflect.Value) {
	text := os.Getenv(s.variable())
	if text == "" {
		return
	}
	value, err := parse(s.Type, s.variable(), "")
	if err != nil {
		c.add(s.variable(), redact(text), "can't be read", "Set "+s.allowed()+".")
		return
	}
	if list, ok := value.Interface().([]string); ok {
		value = reflect.ValueOf(entries(list))
	}
	v.Set(value)
}

// entries trims the entries of a list and drops empty ones, so that "a, b," lists a and b.
func entries(list []string) []string {
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return slices.DeleteFunc(list, func(s string) bool { return s == "" })
}

// secret returns the value of a secret, which may come in a file.
func (c *check) secret(s setting) string {
	value, path := os.Getenv(s.variable()), os.Getenv(s.file())
	switch {
	case path == "":
		return value
	case value != "":
		c.add(s.variable(), "", "and "+s.file()+" are both set", "Set one of them.")
		return ""
	}
	content, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err // the path is shown already
		}
		c.addTo(s.variable(), s.file(), path, "can't be read: "+err.Error(), "Name a file that this process may read.")
		return ""
	}
	value = strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	if value == "" {
		c.addTo(s.variable(), s.file(), path, "names an empty file", "Write the value into the file.")
	}
	return value
}

// serviceLink tells the variables that Kubernetes sets for a Service whose name begins with "auditsink".
var serviceLink = regexp.MustCompile(`_SERVICE_(HOST|PORT)|_PORT_[0-9]+_`)

// Strangers lists the variables with our prefix that set nothing and aren't like any setting: one of a newer version,
// or none of ours. They are worth a warning and no more, or going back to an older version would fail over them.
func Strangers() []Problem {
	_, strangers := unknown(os.Environ())
	return strangers
}

// unknown finds the variables with our prefix that set nothing. Their values stay hidden: a misspelt name may be
// that of a secret.
func unknown(environ []string) (misspelt, strangers []Problem) {
	var known []string
	for _, s := range settings() {
		known = append(known, s.variable())
		if s.secret() {
			known = append(known, s.file())
		}
	}
	slices.Sort(environ)
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, Prefix) || slices.Contains(known, name) {
			continue
		}
		p := Problem{Variable: name, Cause: "is not a setting", Remedy: "`auditsink config reference` lists what there is."}
		if serviceLink.MatchString(name) || strings.HasPrefix(value, "tcp://") {
			p.Remedy = "Kubernetes sets it for a Service; enableServiceLinks: false in the pod's spec keeps it away."
		} else if near := nearest(name, known); near != "" {
			p.Remedy = "Did you mean " + near + "?"
			misspelt = append(misspelt, p)
			continue
		}
		strangers = append(strangers, p)
	}
	return misspelt, strangers
}

// nearest returns the known name that name is a misspelling of, or "" where there is none: two letters off at most, or _FILE for
// what is no secret.
func nearest(name string, known []string) string {
	if plain := strings.TrimSuffix(name, "_FILE"); plain != name && slices.Contains(known, plain) {
		return plain
	}
	best, least := "", 2
	for _, k := range known {
		if d := distance(name, k); d <= least && (best == "" || d < least) {
			best, least = k, d
		}
	}
	return best
}

// distance is Levenshtein's: the insertions, deletions and replacements of bytes that make a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
