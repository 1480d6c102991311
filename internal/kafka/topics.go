package kafka

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/config"
)

const topicsVariable = config.Prefix + "KAFKA_TOPICS"

// Topics parts the entries of the setting into the names of topics and regular expressions.
func Topics(entries []string) (literals, patterns []string) {
	for _, e := range entries {
		if config.IsPattern(e) {
			patterns = append(patterns, e)
		} else {
			literals = append(literals, e)
		}
	}
	return literals, patterns
}

// ConsumeTopics makes a client consume the entries of the setting. The client takes either names or expressions: where
// both are given, a name becomes an expression that only it matches.
func ConsumeTopics(entries []string) []kgo.Opt {
	literals, patterns := Topics(entries)
	if patterns == nil {
		return []kgo.Opt{kgo.ConsumeTopics(literals...)}
	}
	for _, name := range literals {
		patterns = append(patterns, "^"+regexp.QuoteMeta(name)+"$")
	}
	return []kgo.Opt{kgo.ConsumeTopics(patterns...), kgo.ConsumeRegex()}
}

// CheckTopics requires that a broker answers and that the cluster has every topic named in entries; an expression may
// match none. For topics that are missing or hidden from us the error joins an *[Error] each; any other is the client's,
// for [Explain].
func CheckTopics(ctx context.Context, client *kadm.Client, entries []string) error {
	if len(entries) == 0 {
		return &config.Error{Problems: []config.Problem{{
			Variable: topicsVariable, Cause: "is not set", Remedy: "Set the topics to take events from.",
		}}}
	}
	literals, _ := Topics(entries)
	if len(literals) == 0 {
		if _, err := client.BrokerMetadata(ctx); err != nil {
			return fmt.Errorf("ask the brokers who they are: %w", err)
		}
		return nil
	}
	var faults []error
	for _, name := range slices.Compact(slices.Sorted(slices.Values(literals))) {
		// One by one: where a topic is hidden from us, the answer for several doesn't say which.
		switch err := lookUp(ctx, client, name); {
		case err == nil:
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			faults = append(faults, &Error{
				Cause:  fmt.Sprintf("the cluster has no topic %q, or hides it from this client", name),
				Remedy: "Create it, or correct " + topicsVariable + ".",
				Fatal:  true,
				Err:    err,
			})
		case errors.Is(err, kerr.TopicAuthorizationFailed):
			faults = append(faults, &Error{
				Cause:  fmt.Sprintf("the brokers don't allow this client the use of topic %q", name),
				Remedy: "Grant its user " + topicRights + ", or correct " + topicsVariable + ".",
				Fatal:  true,
				Err:    err,
			})
		default:
			return err // it isn't about this topic
		}
	}
	return errors.Join(faults...)
}

func lookUp(ctx context.Context, client *kadm.Client, topic string) error {
	found, err := client.ListTopicsWithInternal(ctx, topic)
	if err == nil {
		err = found[topic].Err
	}
	if err != nil {
		return fmt.Errorf("look up topic %q: %w", topic, err)
	}
	return nil
}
