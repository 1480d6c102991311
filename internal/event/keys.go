package event

import (
	"bytes"
	"slices"
)

// fewKeys is up to how many keys of an object are compared each with each; more are sorted.
const fewKeys = 16

// keepKeys is the room for keys that is kept for the next text.
const keepKeys = keepBytes / 16

// keys remembers the keys of all open objects, to find one that an object has twice. That matters at every
// depth: jsonb would drop all but the last without a word.
type keys struct {
	text    []byte
	decoded []byte // keys that have escapes, without them
	stack   []key
	base    int  // where the keys of the innermost object start on the stack
	ignore  bool // whether a fault is known that makes the keys irrelevant
}

// key is where a key stands. The 32 bits of each offset halve what a deep text costs; Take bounds the text.
type key struct {
	at          int32 // of its opening quote in the text
	start, size int32 // of its characters: in the text, or from len(text) on, in decoded
}

// offset returns n as it is kept in a key.
func offset(n int) int32 {
	return int32(n) //nolint:gosec // Take bounds the text to maxText, which leaves room for twice as much
}

// reset forgets all keys and makes ready for a text.
func (k *keys) reset(text []byte) {
	k.text = text
	k.decoded = shrink(k.decoded, keepBytes)[:0]
	k.stack = shrink(k.stack, keepKeys)[:0]
	k.base = 0
	k.ignore = false
}

// push enters an object. Below its keys lies an entry that tells where those of the outer one start.
func (k *keys) push() {
	k.stack = append(k.stack, key{start: offset(k.base)})
	k.base = len(k.stack)
}

// locate returns the key in text[at:end], quotes included, unescaping it if need be.
func (k *keys) locate(at, end int, escaped bool) key {
	if !escaped {
		return key{at: offset(at), start: offset(at + 1), size: offset(end - at - 2)}
	}
	before := len(k.decoded)
	k.decoded = appendUnescaped(k.decoded, k.text[at+1:end-1])
	return key{at: offset(at), start: offset(len(k.text) + before), size: offset(len(k.decoded) - before)}
}

// add remembers a key of the innermost object.
func (k *keys) add(added key) { k.stack = append(k.stack, added) }

// pop leaves the innermost object. It returns the offset of the first of its keys that it had before, or -1.
func (k *keys) pop() int {
	var again int32
	if object := k.stack[k.base:]; len(object) <= fewKeys {
		again = k.firstAgain(object)
	} else {
		again = k.firstAgainSorted(object)
	}
	below := k.base - 1
	k.base = int(k.stack[below].start)
	k.stack = k.stack[:below]
	return int(again)
}

// firstAgain compares each key with each before it.
func (k *keys) firstAgain(object []key) int32 {
	for i, key := range object {
		for _, earlier := range object[:i] {
			if earlier.size == key.size && bytes.Equal(k.characters(earlier), k.characters(key)) {
				return key.at
			}
		}
	}
	return -1
}

// firstAgainSorted sorts the keys and compares neighbours.
func (k *keys) firstAgainSorted(object []key) int32 {
	slices.SortFunc(object, func(a, b key) int {
		if a.size != b.size {
			return int(a.size - b.size)
		}
		if order := bytes.Compare(k.characters(a), k.characters(b)); order != 0 {
			return order
		}
		return int(a.at - b.at)
	})
	again := int32(-1)
	for i := 1; i < len(object); i++ {
		before, key := object[i-1], object[i]
		same := before.size == key.size && bytes.Equal(k.characters(before), k.characters(key))
		if same && (again < 0 || key.at < again) {
			again = key.at
		}
	}
	return again
}

// characters returns a key without quotes and escapes.
func (k *keys) characters(of key) []byte {
	from, start := k.text, int(of.start)
	if start >= len(k.text) {
		from, start = k.decoded, start-len(k.text)
	}
	return from[start : start+int(of.size)]
}
