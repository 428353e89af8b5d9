// Keeps the page up to date: it asks for a new <main> every two seconds, and changes
// only what is different, so that focus, selection and open parts stay.

const EVERY = 2000
const SOON = 500
const SAID = 10000
const pause = document.getElementById('pause')
const told = document.getElementById('told')
const trouble = document.getElementById('trouble')
const age = document.getElementById('age')
let paused = false
let timer
let silence
let failures = 0
let asking = 0
// With several workers each answer may be another's. What is of one worker alone stays
// that of the one that is shown, until nothing was heard of it for some time.
const PATIENCE = 20000
let own = document.querySelector('main').dataset.process
let heard = performance.now()
let foreign = false

function change(from, to) {
  if (foreign && 'own' in to.dataset && 'own' in from.dataset) return
  for (const { name, value } of to.attributes)
    if (from.getAttribute(name) !== value) from.setAttribute(name, value)
  for (const { name } of [...from.attributes])
    if (!to.hasAttribute(name) && name !== 'open') from.removeAttribute(name)
  changeChildren(from, to)
}

const keyOf = node => node.nodeType === 1 ? node.dataset?.key ?? node.id ?? '' : ''
const alike = (one, other) =>
  one.nodeName === other.nodeName && keyOf(one) === keyOf(other)

function changeChildren(from, to) {
  const wanted = new Set([...to.childNodes].map(keyOf).filter(Boolean))
  for (const child of [...from.childNodes])
    if (keyOf(child) && !wanted.has(keyOf(child))) child.remove()
  let next = from.firstChild
  for (const child of [...to.childNodes]) {
    if (next && alike(next, child)) {
      if (next.nodeType === 1) change(next, child)
      else if (next.data !== child.data) next.data = child.data
      next = next.nextSibling
    } else {
      from.insertBefore(document.importNode(child, true), next)
    }
  }
  while (next) {
    const gone = next
    next = next.nextSibling
    gone.remove()
  }
}

async function look() {
  clearTimeout(timer)
  const mine = ++asking
  const began = performance.now()
  try {
    const answer = await fetch(document.body.dataset.live, {
      signal: AbortSignal.timeout(10000),
    })
    if (!answer.ok) throw new Error(`the application has answered with ${answer.status}`)
    const text = await answer.text()
    if (mine !== asking) return // a button was pressed meanwhile, and asks again
    const main = new DOMParser().parseFromString(text, 'text/html').querySelector('main[data-process]')
    if (!main) throw new Error('the answer is not this page; are you still logged in?')
    if (main.dataset.process === own || performance.now() - heard > PATIENCE) {
      own = main.dataset.process
      heard = performance.now()
    }
    foreign = main.dataset.process !== own
    change(document.querySelector('main'), main)
    age.textContent = `as of ${main.dataset.now} UTC`
    if (failures) trouble.textContent = ''
    failures = 0
  } catch (error) {
    if (mine !== asking) return
    failures += 1
    const why = error.name === 'TimeoutError' ? 'no answer within 10 seconds' : error.message
    if (failures === 2) trouble.textContent = `What you see is old: ${why}.`
  }
  // An application that needs long to answer is asked less often.
  const soon = foreign ? SOON : EVERY // perhaps the next answer is of the one shown
  const wait = Math.max(soon, 5 * (performance.now() - began), EVERY * 2 ** Math.min(failures, 4) / 2)
  if (!paused && !document.hidden) timer = setTimeout(look, wait)
}

function say(text, place) {
  told.textContent = trouble.textContent = ''
  place.textContent = text
  clearTimeout(silence)
  if (place === told) silence = setTimeout(() => { told.textContent = '' }, SAID)
}

document.addEventListener('submit', async event => {
  const form = event.target
  event.preventDefault()
  const body = new URLSearchParams(new FormData(form, event.submitter))
  say('', told) // until this one is answered
  try {
    const answer = await fetch(form.action, {
      method: 'POST', body, headers: { Accept: 'application/json' },
    })
    const { message } = await answer.json()
    say(message, answer.ok ? told : trouble)
  } catch (error) {
    say(`It is not known whether that was done: ${error.message}.`, trouble)
  }
  look()
})

// A long list can be cut down to what needs a look.
const only = document.getElementById('only')
const MANY = 12
document.getElementById('only-label').hidden =
  document.querySelectorAll('tr[class^=is-]').length <= MANY
only.addEventListener('change', () => document.body.classList.toggle('only', only.checked))

pause.hidden = false
pause.addEventListener('click', () => {
  paused = !paused
  pause.setAttribute('aria-pressed', paused)
  if (paused) clearTimeout(timer)
  else look()
})
document.addEventListener('visibilitychange', () => {
  if (document.hidden) clearTimeout(timer)
  else if (!paused) look()
})
timer = setTimeout(look, EVERY)
