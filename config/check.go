package config

import (
	"cmp"
	"fmt"
	"math"
	"net"
	"reflect"
	"slices"
	"strings"
	"time"
)

// check gathers problems. One goroutine, that of Load or Validate, uses it.
type check struct {
	problems []Problem
	// broken names the variables that a problem was found with: nothing more is concluded from their values.
	broken []string
}

func (c *check) add(variable, value, cause, remedy string) {
	c.addTo(variable, variable, value, cause, remedy)
}

// addTo adds a problem that shows in one variable and breaks another.
func (c *check) addTo(broken, variable, value, cause, remedy string) {
	c.broken = append(c.broken, broken)
	c.problems = append(c.problems, Problem{Variable: variable, Value: value, Cause: cause, Remedy: remedy})
}

func (c *check) err() error {
	if len(c.problems) == 0 {
		return nil
	}
	position := func(p Problem) int {
		at := slices.IndexFunc(settings(), func(s setting) bool {
			return p.Variable == s.variable() || s.secret() && p.Variable == s.file()
		})
		if at < 0 { // an unknown variable: after the known ones
			return math.MaxInt
		}
		return at
	}
	slices.SortStableFunc(c.problems, func(a, b Problem) int { return cmp.Compare(position(a), position(b)) })
	return &Error{Problems: c.problems}
}

// sound tells whether no problem was found with these variables, named without the prefix.
func (c *check) sound(names ...string) bool {
	return !slices.ContainsFunc(names, func(n string) bool { return slices.Contains(c.broken, Prefix+n) })
}

// Validate checks settings made in code as [Load] checks the environment's. The error is an *[Error].
func (c Config) Validate(needs ...Need) error {
	var k check
	k.config(c, needs)
	return k.err()
}

func (c *check) config(cfg Config, needs []Need) {
	for _, s := range settings() {
		if c.sound(s.Tag.Get("envconfig")) {
			c.value(s, s.of(&cfg), needs)
		}
	}
	c.kafka(cfg)
	c.tls(cfg)
	c.sasl(cfg)
	c.postgres("POSTGRES_URL", cfg.PostgresURL)
	if cfg.PostgresMaintenanceURL != cfg.PostgresURL {
		c.postgres("POSTGRES_MAINTENANCE_URL", cfg.PostgresMaintenanceURL)
	}
	c.url("REDIS_URL", cfg.RedisURL, "Set redis://user:password@host:6379/0, or rediss:// for TLS.", "redis", "rediss", "unix")
	c.url("ALERT_WEBHOOK_URL", cfg.AlertWebhookURL, "Set an http:// or https:// URL.", "http", "https")
	if cfg.AlertWebhookKey != "" && cfg.AlertWebhookURL == "" && c.sound("ALERT_WEBHOOK_URL") {
		c.add(Prefix+"ALERT_WEBHOOK_KEY", "", "has no effect without a webhook", "Set "+Prefix+"ALERT_WEBHOOK_URL or remove it.")
	}
	order(c, "POOL_MIN_CONNS", cfg.PoolMinConns, "POOL_MAX_CONNS", cfg.PoolMaxConns)
	if host, port, err := net.SplitHostPort(cfg.HTTPAddr); err != nil || !portNumber(port, 0) || strings.Contains(host, "/") {
		c.add(Prefix+"HTTP_ADDR", cfg.HTTPAddr, "is not an address to listen on", "Set host:port, such as 127.0.0.1:9464 or :9464.")
	}
}

// value checks one setting by its tags.
func (c *check) value(s setting, v reflect.Value, needs []Need) {
	missing := v.Kind() == reflect.Slice && v.Len() == 0 || v.IsZero()
	if missing && slices.ContainsFunc(needs, func(n Need) bool { return n.String() == s.Tag.Get("need") }) {
		c.add(s.variable(), "", "is not set", "Set it: "+s.Tag.Get("desc")+".")
		return
	}
	if one := s.oneof(); one != nil && !slices.Contains(one, v.String()) {
		c.add(s.variable(), redact(v.String()), "is not allowed", "Set "+s.allowed()+".")
	}
	if low, high := s.bounds(); v.CanInt() && (v.Int() < low || v.Int() > high) {
		c.add(s.variable(), show(v), "is out of range", "Set "+s.allowed()+".")
	}
}

// bounds returns the smallest and largest value allowed.
func (s setting) bounds() (low, high int64) {
	bound := func(tag string, otherwise int64) int64 {
		text := s.Tag.Get(tag)
		if text == "" {
			return otherwise
		}
		v, err := parse(s.Type, unset, text)
		if err != nil {
			panic(fmt.Sprintf("%s of %s: %v", tag, s.variable(), err)) // a slip in the tags of Config
		}
		return v.Int()
	}
	return bound("min", math.MinInt64), bound("max", math.MaxInt64)
}

// allowed says what a setting may hold, following "Set ".
func (s setting) allowed() string {
	if one := s.oneof(); one != nil {
		named := slices.DeleteFunc(one, func(v string) bool { return v == "" })
		if len(named) < len(one) {
			return "one of " + strings.Join(named, ", ") + ", or nothing"
		}
		return "one of " + strings.Join(named, ", ")
	}
	within := ""
	if low := s.Tag.Get("min"); low != "" {
		within = " (" + limits(low, s.Tag.Get("max")) + ")"
	}
	switch s.Type {
	case reflect.TypeFor[bool]():
		return "true or false"
	case reflect.TypeFor[time.Duration]():
		return "a duration" + within + ", written like 500ms, 30s or 5m"
	case reflect.TypeFor[Size]():
		return "a size" + within + ", in bytes or written like 512KiB, 8MiB or 10MB"
	default:
		return "a whole number" + within
	}
}

// order requires one setting not to exceed another.
func order[T int32 | Size](c *check, name string, value T, limit string, most T) {
	if value > most && c.sound(name, limit) {
		c.add(Prefix+name, fmt.Sprint(value), fmt.Sprintf("is more than %s%s=%q", Prefix, limit, fmt.Sprint(most)), "Lower the one or raise the other.")
	}
}
